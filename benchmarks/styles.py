"""Federated runs on real pictures, judged by an extractor that fedsd did not train.

    python benchmarks/styles.py emoji --data DIR --realism SCRIPT [--out DIR]
    python benchmarks/styles.py pacs  --data DIR --realism SCRIPT [--out DIR]

It runs `fedsd run` with the preset of that name, draws 200 pictures per style and adapter, by LCM's sampler (emoji) or
by DDPM with a guidance of 6 (PACS), and scores them against held-out pictures of the style. The FedAvg adapter is the
factor mean of the last round's client adapters, as the run keeps it beside its own; with `--fedavg-run` it comes from a
run of its own, with FedAvg in every round.
"""

import argparse
import csv
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import Judge, nearest_names
from points import given, record
from sklearn.metrics import adjusted_rand_score

from fedsd.base import load
from fedsd.cli import evaluate, sampling

STEPS = 25
# LCM's sampler smooths away what an adapter is unsure of, which flat styles gain by; PACS has hundreds of pictures that
# are unlike each other for each of its seven captions, and what they have in common takes a stronger guidance
FLAT, FEW_WORDS = sampling.SamplerSettings("lcm", sampling.GUIDANCE), sampling.SamplerSettings("ddpm", 6.0)
SETTINGS = {"emoji": FLAT, "pacs": FEW_WORDS}
OWN = ("openmoji_black", "fluent_high_contrast", "serenity_pixel")  # plainly their own; twemoji is near the base


def run(preset: str, data: Path | None, folder: Path, more: Sequence[str], clients: int = 8) -> float:
    """Run one federation into `folder` unless it is there already; returns its seconds."""
    timing = folder / "seconds.txt"
    if not timing.exists():
        begun = time.time()
        held = ["--data", str(data)] if data else []
        command = ["run", "--preset", preset, *held, "--clients", str(clients), "--folder", str(folder), *more]
        subprocess.run([sys.executable, "-m", "fedsd.cli.main", *command], check=True)
        timing.write_text(str(time.time() - begun))
    return float(timing.read_text())


def cluster_score(folder: Path) -> float:
    """Return the adjusted Rand index of the last round's clusters against the clients' styles."""
    done = sampling.finished(folder)
    clients = sorted(done.style_of)
    return float(
        adjusted_rand_score([done.style_of[c] for c in clients], [done.cluster_of.get(c, "-1") for c in clients])
    )


def judge_style(judge: Judge, made: Path, held_out: np.ndarray, train: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return KID, FID and share of right names of the pictures in `made`."""
    fake = judge.features(made)
    prompts = json.loads((made / "prompts.json").read_text())
    mean, std = judge.kid(held_out, fake)
    found = nearest_names(fake[:100], train, names)
    right = float(np.mean([name == prompt for name, prompt in zip(found, prompts[:100], strict=True)]))
    return {
        "kid": mean,
        "kid_std": std,
        "fid": judge.fid(held_out, fake),
        "names_right": right,
        "n": len(fake),
        "n_real": len(held_out),
    }


def judge_adapters(opts: argparse.Namespace, out: Path, style: str) -> dict[str, dict[str, Any]]:
    """Draw a style with the base, with FedAvg's adapter and with the cluster's; return the scores of each."""
    judge, done = Judge(opts.realism), sampling.finished(out / "clustered")
    fedavg = sampling.finished(out / "fedavg").loras["mix"] if opts.fedavg_run else done.loras["fedavg"]
    settings, scores = SETTINGS[opts.preset], dict[str, dict[str, Any]]()
    base = settings.on(load.load("tiny"))
    held_out = judge_pictures(judge, done, style, "split=heldout")
    train, names = judge_pictures(judge, done, style, ""), [e.caption for e in pool(done, style, "")]
    prompts = evaluate.prompts_of(done, style, opts.pictures)
    loras = {"base": {}, "fedavg": fedavg, "cluster": evaluate.adapter_of(done, "cluster", style)}
    for method, lora in loras.items():
        made = out / "pictures" / method / style
        evaluate.draw(partial(sampling.sample, base, lora, steps=STEPS, guidance=settings.guidance), prompts, made)
        scores[method] = judge_style(judge, made, held_out, train, names)
        print(style, method, json.dumps(scores[method]), flush=True)
    return scores


def main() -> None:
    """Run, draw, judge and record."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("preset", choices=("emoji", "pacs"))
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path)
    args.add_argument("--pictures", type=int, default=200)
    args.add_argument("--no-record", action="store_true")
    args.add_argument("--fedavg-run", action="store_true")
    args.add_argument("--set", "-s", action="append", default=[])
    opts = args.parse_args()
    Judge(opts.realism)  # ends here where there is no script
    out = (opts.out or Path("runs") / f"benchmark-{opts.preset}").absolute()
    more = [part for text in opts.set for part in ("-s", text)]
    seconds = run(opts.preset, opts.data, out / "clustered", more)
    if opts.fedavg_run:
        run(opts.preset, opts.data, out / "fedavg", [*more, "-s", "strategy.name=fedavg"])
    styles = sorted(set(sampling.finished(out / "clustered").style_of.values()))
    alone = {"initializer": torch.set_num_threads, "initargs": (1,)}  # two threads on a busy core wait for each other
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), **alone) as workers:
        found = dict(zip(styles, workers.map(partial(judge_adapters, opts, out), styles), strict=True))
    table = {method: {style: found[style][method] for style in styles} for method in found[styles[0]]}
    ari = cluster_score(out / "clustered")
    (out / "scores.json").write_text(json.dumps({"seconds": seconds, "ari": ari, "scores": table}, indent=1))
    write_csv(table, out / "scores.csv")
    if not opts.no_record:
        points(opts.preset, table, ari, seconds)


def pool(done: sampling.Finished, style: str, where: str) -> Sequence[Any]:
    """Return the real pictures of a style: the rows that `where` adds, or what its clients hold."""
    if not where:
        return [e for client in sorted(done.examples) for e in done.examples[client] if e.style == style]
    kept = [part for part in done.config.data.where.split(";") if not part.startswith("split=")]
    return evaluate.real_pictures(done, style, ";".join([where, *kept]))


def judge_pictures(judge: Judge, done: sampling.Finished, style: str, where: str) -> np.ndarray:
    """Return features (N, 1280) of real pictures at the base's own size."""
    import tempfile

    from judge import write_pictures
    from PIL import Image

    from fedsd.data.images import pixels

    unit = pixels(pool(done, style, where), load.load("tiny").size)
    shown = [Image.fromarray(((p.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)) for p in unit]
    with tempfile.TemporaryDirectory() as folder:
        return judge.features(write_pictures(shown, Path(folder)))


def write_csv(table: dict[str, dict[str, Any]], file: Path) -> None:
    """Write one line per method and style."""
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["method", "style", "kid_x1000", "kid_std", "fid", "names_right", "n", "n_real"])
        for method, cells in table.items():
            for style, cell in cells.items():
                writer.writerow(
                    [
                        method,
                        style,
                        *(round(cell[k], 3) for k in ("kid", "kid_std", "fid", "names_right", "n", "n_real")),
                    ]
                )


def points(preset: str, table: dict[str, dict[str, Any]], ari: float, seconds: float) -> None:
    """Record the points of this benchmark."""
    command = f"python benchmarks/styles.py {preset} --data DIR --realism SCRIPT{given('--pictures', '--set', '-s')}"
    over = lambda other, style: table["cluster"][style]["kid"] / table[other][style]["kid"]  # noqa: E731

    def note(name: str, value: float, target: str) -> None:
        record(f"main.{preset}.{name}", value, target, command=command, seconds=seconds)

    if preset == "pacs":
        note("ari", ari, ">= 0.8")
        note("kid_over_base", max(over("base", style) for style in table["cluster"]), "< 1")
        return
    note("ari", ari, "= 1")
    note("kid_over_base", max(over("base", style) for style in OWN), "<= 0.5")
    note("kid_over_fedavg", max(over("fedavg", style) for style in OWN), "<= 0.7")
    note("twemoji_kid_over_base", over("base", "twemoji"), "< 1")
    note("twemoji_kid_over_fedavg", over("fedavg", "twemoji"), "< 1")
    note("names_right", min(table["cluster"][style]["names_right"] for style in table["cluster"]), ">= 0.4")
    note("seconds", seconds, "<= 1500")


if __name__ == "__main__":
    main()
