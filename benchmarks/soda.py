"""SODA beside adapters of its size on real pictures, and the federated mean of its clients beside each of them.

    python benchmarks/soda.py --data DIR --realism SCRIPT [--jobs 2] [--out DIR]

DIR is a folder of emoji with an index.csv as the preset `emoji` reads it. For each style every method trains on the
same pictures, in the same order and with the same noise, and draws the same prompts from the same seeds by LCM's
sampler. LoRA, OFT and HRA have the smallest size whose parameters are no fewer than SODA's, BOFT has PEFT's own block
of 4 (where its CUDA extension cannot be built, PEFT turns BOFT into one layer of blocks and a scale); SVDiff is SODA
without its rotation. All adapt the same layers: the attention of U-Net and text encoder, as the preset `soda` does.

Each method has a learning rate of its own, of two candidates the one with the lower KID on the style `--sweep`, which
counts like any other style; `--rate METHOD=RATE` leaves the choice out. LoRA has 0.3 of it in the text encoder, as in
fedsd's defaults. SODA wins a style where both its KID and its class score (prompts whose nearest real picture of the
style bears their name) are better than those of every peer.

What is finished stays in `--out` and is not done again: a run that was cut off goes on.
"""

import argparse
import csv
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from judge import Judge, nearest_names, write_pictures
from PIL import Image
from points import given, record
from section import table
from soda_peers import PEERS, RATES, Training, sd15_sizes, train, within
from styles import FLAT, run

from fedsd import config as configuration
from fedsd.base import load
from fedsd.base.denoise import encode_pixels
from fedsd.base.load import Base
from fedsd.base.training import Descent, Pictures, Shared
from fedsd.cli import evaluate, sampling
from fedsd.cli.grids import grid
from fedsd.cli.run import read_preset
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.data.shares import layout_of
from fedsd.methods import soda
from fedsd.strategies.recorded import received_updates

OPTIONS = ("--styles", "--steps", "--batch", "--pictures", "--draw-steps", "--seed", "--sweep", "--rate", "--unet-only")
OPTIONS += ("--federated", "--rounds", "--round-steps")
COMMAND = "python benchmarks/soda.py --data DIR --realism SCRIPT" + given(*OPTIONS)
STYLES = "fluent_3d,fluent_high_contrast,fxemoji,noto,noto_blob,openmoji_black,serenity_pixel,twemoji"
KEPT = ("kid", "kid_std", "names_right", "parameters", "rate", "loss_first", "loss_last", "seconds")
Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What all cells have in common; a folder of results belongs to one plan."""

    data: Path
    realism: Path
    out: Path
    training: Training
    pictures: int
    draw_steps: int

    def folder(self, style: str, method: str, rate: float) -> Path:
        """Return where a cell's pictures and score lie."""
        return self.out / "pictures" / style / f"{method}-{rate:g}"


@dataclass(frozen=True, eq=False)
class Real:
    """A style's real pictures: those trained on (latents, names, uint8 pixels), and features of both splits."""

    latents: torch.Tensor
    names: list[str]
    shown: np.ndarray
    train: np.ndarray
    heldout: np.ndarray

    def prompts(self, count: int) -> list[str]:
        """Return `count` names in a seeded order, all once before any comes again."""
        names = sorted(set(self.names))
        order = np.random.default_rng(0).permutation(len(names))
        return [names[order[i % len(order)]] for i in range(count)]


judge_of = lru_cache(maxsize=1)(Judge)


@lru_cache(maxsize=1)
def real_of(plan: Plan, style: str) -> Real:
    """Return a style's pictures, prepared once for all processes."""
    file = plan.out / "real" / f"{style}.npz"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        np.savez(file, **prepared(plan, style))
    with np.load(file) as kept:
        arrays = {name: kept[name] for name in kept.files}
    names = [str(name) for name in arrays.pop("names")]
    return Real(torch.from_numpy(arrays.pop("latents")), names, **arrays)


def prepared(plan: Plan, style: str) -> dict[str, Any]:
    """Return what `Real` holds of the rows that the preset `emoji` reads, at the base's own size."""
    base, parts = load.load("tiny"), dict[str, Any]()
    data = configuration.from_run_config(configuration.defaults() | read_preset("emoji")).data
    for split in ("heldout", "train"):
        where = data.where.replace("split=train", f"split={split}")
        examples = read(plan.data, layout_of(replace(data, where=where, styles=style)))
        unit = pixels(examples, base.size)
        shown = evaluate.as_bytes(unit).permute(0, 2, 3, 1).numpy()
        with TemporaryDirectory() as folder:
            write_pictures([Image.fromarray(picture) for picture in shown], Path(folder))
            parts[split] = judge_of(plan.realism).features(Path(folder))
    latents = encode_pixels(base, torch.from_numpy(unit)).numpy()
    return parts | {"latents": latents, "shown": shown, "names": [example.caption for example in examples]}


def scored(plan: Plan, style: str, model: AbstractContextManager[Base], folder: Path) -> dict[str, Any]:
    """Draw a style's prompts with a model and judge them; the base must then be as it was."""
    base, real, judge = load.load("tiny"), real_of(plan, style), judge_of(plan.realism)
    prompts = real.prompts(plan.pictures)
    with model as carrying:
        evaluate.draw(partial(sampling.pictures, FLAT.on(carrying), steps=plan.draw_steps), prompts, folder)
    if load.weights_sha(base.unet, base.text_encoder, base.vae) != base.sha:
        raise RuntimeError(f"the base was changed by what drew {folder}")
    fake = judge.features(folder)
    kid, deviation = judge.kid(real.heldout, fake)
    right = np.mean(np.array(nearest_names(fake, real.train, real.names)) == np.array(prompts))
    return {"kid": float(kid), "kid_std": float(deviation), "names_right": float(right)}


def cell(plan: Plan, style: str, method: str, rate: float) -> dict[str, Any]:
    """Train, draw and judge one method in one style, or read what that gave before."""
    folder, begun = plan.folder(style, method, rate), time.monotonic()
    file = folder / "score.json"
    if not file.exists():
        real = real_of(plan, style)
        trained = train(load.load("tiny"), Pictures(real.latents, real.names), method, rate, plan.training)
        found = scored(plan, style, trained.model, folder)
        found |= dict(zip(("loss_first", "loss_last"), trained.losses, strict=True))
        found |= {"parameters": trained.parameters, "rate": rate, "seconds": time.monotonic() - begun}
        file.write_text(json.dumps(found))
    return dict(json.loads(file.read_text()))


def cells(plan: Plan, wanted: Sequence[tuple[str, str, float]], pool: ProcessPoolExecutor) -> dict[Any, dict[str, Any]]:
    """Return the score of each (style, method, rate)."""
    waiting, found = {pool.submit(cell, plan, *key): key for key in wanted}, {}
    for done in as_completed(waiting):
        found[waiting[done]] = done.result()
        print(*waiting[done], json.dumps(done.result()), flush=True)
    return found


def measured(
    plan: Plan, styles: Sequence[str], sweep: str, tried: Mapping[str, Sequence[float]], pool: ProcessPoolExecutor
) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose each method's rate, then return its score in each style; the base alone is the first method."""
    for ready in [pool.submit(real_of, plan, style) for style in dict.fromkeys([sweep, *styles])]:
        ready.result()
    found = cells(plan, [(sweep, m, rate) for m, rates in tried.items() if len(rates) > 1 for rate in rates], pool)
    rates = {"base": 0.0} | {m: rates[0] for m, rates in tried.items()}
    for style, method, rate in found:
        if found[style, method, rate]["kid"] < found[style, method, rates[method]]["kid"]:
            rates[method] = rate
    found |= cells(plan, [(style, *chosen) for style in styles for chosen in rates.items()], pool)
    return {m: {style: found[style, m, rate] for style in styles} for m, rate in rates.items()}


def federated(plan: Plan, style: str, rate: float, rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Judge the mean of four clients of one style, what each of them last sent, and what each becomes alone.

    Alone is a run of one round with as many steps in all: the same clients, pictures and rates, and no mean between.
    """
    together, alone = (four_clients(plan, style, rate, *how) for how in ((rounds, steps), (1, rounds * steps)))
    done, base, scores = sampling.finished(together), load.load("tiny"), {}
    models = {"mean": done.arrays["fedavg"]} | last_sent(together, "sent") | last_sent(alone, "alone")
    for name, arrays in models.items():
        model = within(base, soda.adapted(base, Shared(arrays=arrays), done.config.soda.form))
        scores[name] = scored(plan, style, model, plan.out / "pictures" / together.name / name)
        print("federated", style, name, json.dumps(scores[name]), flush=True)
    return scores


def four_clients(plan: Plan, style: str, rate: float, rounds: int, steps: int) -> Path:
    """Run the preset with four clients of one style, unless it is there; returns its folder."""
    how = plan.training
    sets = {key: value for key, value in read_preset("emoji").items() if key.startswith("data.")} | {
        "data.styles": style, "node.private-dir": plan.out / "nodes", "strategy.name": "fedavg", "run.record": "true",
        "run.rounds": rounds, "run.seed": how.seed, "soda.shift-lr": rate, "soda.turn-lr": rate, "train.steps": steps,
        "train.batch-size": how.descent.batch_size, "lora.text-encoder": str(how.text_encoder).lower(),
    }  # fmt: skip
    folder = plan.out / f"federated-{style}-{rounds}x{steps}-{rate:g}"
    more = [part for key, value in sets.items() for part in ("-s", f"{key}={value}")]
    run("soda", plan.data, folder, ["--no-report", *more], clients=4)
    return folder


def last_sent(folder: Path, kind: str) -> dict[str, Any]:
    """Return the arrays that each client sent in the last round, by "KIND CLIENT"."""
    received = received_updates(folder)
    return {f"{kind} {client}": update.arrays for client, update in sorted(received[max(received)].items())}


def summary(plan: Plan, scores: Mapping[str, Scores], fleet: Scores) -> int:
    """Write scores.csv and summary.md; returns the styles that SODA wins against all peers in both measures."""
    ours, styles = scores["soda"], list(scores["soda"])
    kid = {peer: {s for s in styles if ours[s]["kid"] < scores[peer][s]["kid"]} for peer in PEERS}
    named = {peer: {s for s in styles if ours[s]["names_right"] > scores[peer][s]["names_right"]} for peer in PEERS}
    won = set(styles).intersection(*kid.values(), *named.values())
    with (plan.out / "scores.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["method", "style", *KEPT])
        for method, of in [*scores.items(), ("federated", fleet)]:
            writer.writerows([method, name, *(one.get(key, "") for key in KEPT)] for name, one in of.items())
    rows = [(m, *(f"{of[s]['kid']:.1f} / {of[s]['names_right']:.2f}" for s in styles)) for m, of in scores.items()]
    sizes = [(m, of[styles[0]]["parameters"], f"{of[styles[0]]['rate']:g}") for m, of in scores.items()]
    wins = [(peer, len(kid[peer]), len(named[peer]), len(kid[peer] & named[peer])) for peer in PEERS]
    here, there = sd15_sizes()
    text = [
        "KID x 1000 to held-out pictures / class score:", table(("method", *styles), rows),
        table(("method", "parameters", "learning rate"), sizes),
        f"Of {len(styles)} styles SODA wins:", table(("against", "KID", "class score", "both"), wins),
        f"Against all of them in both: {len(won)} ({', '.join(sorted(won)) or 'none'}).",
        f"On the attention of SD 1.5's U-Net SODA has {here:,} parameters, LoRA of rank 16 {there:,}.",
    ]  # fmt: skip
    if fleet:
        rows = [(name, f"{c['kid']:.1f} ± {c['kid_std']:.1f}", f"{c['names_right']:.2f}") for name, c in fleet.items()]
        text += ["Four clients of one style:", table(("adapter", "KID x 1000", "class score"), rows)]
    (plan.out / "summary.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text), flush=True)
    return len(won)


def sheet(plan: Plan, scores: Mapping[str, Scores], columns: int = 2) -> None:
    """Write grid.png: real pictures and each method's, `columns` prompts of each style."""
    titles, rows = list[str](), {name: list[np.ndarray]() for name in ("real", *scores)}
    for style in scores["soda"]:
        real = real_of(plan, style)
        for i, prompt in enumerate(real.prompts(columns)):
            titles.append(f"{style}: {prompt}")
            rows["real"].append(real.shown[real.names.index(prompt)])
            for method, of in scores.items():
                file = plan.folder(style, method, of[style]["rate"]) / f"{i:03d}.png"
                rows[method].append(np.asarray(Image.open(file)))
    grid(list(rows.items()), titles).save(plan.out / "grid.png")


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-soda")
    args.add_argument("--jobs", type=int, default=2, help="processes")
    args.add_argument("--styles", default=STYLES)
    args.add_argument("--steps", type=int, default=80)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--pictures", type=int, default=100, help="drawn per style and method, 20 or more")
    args.add_argument("--draw-steps", type=int, default=12)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--sweep", default="fxemoji", help="style on which learning rates are chosen")
    args.add_argument("--rate", action="append", default=[], help="METHOD=RATE[,RATE...]; one rate needs no choice")
    args.add_argument("--unet-only", action="store_true", help="leave the text encoder as it is")
    args.add_argument("--federated", default="openmoji_black", help="style of the four clients; empty: no run")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--round-steps", type=int, default=40)
    args.add_argument("--no-record", action="store_true")
    return args.parse_args()


def main() -> None:
    """Choose the rates, measure all methods, run the federation, and keep the points."""
    opts, began = arguments(), time.monotonic()
    torch.set_num_threads(1)
    training = Training(Descent(opts.steps, opts.batch, 0.0, "float32", 0.1), opts.seed, not opts.unet_only)
    paths = (path.absolute() for path in (opts.data, opts.realism, opts.out))
    plan = Plan(*paths, training, opts.pictures, opts.draw_steps)
    judge_of(plan.realism)  # ends here where there is no script
    plan.out.mkdir(parents=True, exist_ok=True)
    kept, asked = plan.out / "plan.json", json.dumps(asdict(plan), default=str)
    if kept.exists() and kept.read_text() != asked:
        raise SystemExit(f"{plan.out} holds results of other settings ({kept}); give another --out")
    kept.write_text(asked)
    styles = opts.styles.split(",")
    tried = RATES | {m: tuple(map(float, r.split(","))) for m, r in (text.split("=") for text in opts.rate)}
    alone = {"initializer": torch.set_num_threads, "initargs": (1,)}  # two threads on a busy core wait for each other
    with ProcessPoolExecutor(opts.jobs, multiprocessing.get_context("spawn"), **alone) as pool:
        scores = measured(plan, styles, opts.sweep, tried, pool)
    schedule = scores["soda"][styles[0]]["rate"], opts.rounds, opts.round_steps
    fleet = federated(plan, opts.federated, *schedule) if opts.federated else {}
    sheet(plan, scores)
    wins = summary(plan, scores, fleet)
    if opts.no_record:
        return
    keep = partial(record, command=COMMAND, seconds=time.monotonic() - began)
    if set(styles) == set(STYLES.split(",")):
        keep("soda.wins_of_8", wins, ">= 6")
    if fleet:
        best = {
            kind: min(score["kid"] for name, score in fleet.items() if name.startswith(kind))
            for kind in ("sent", "alone")
        }
        keep("soda.federated_kid_over_best_client", fleet["mean"]["kid"] / best["sent"], "< 1")
        keep("soda.federated_kid_over_best_alone", fleet["mean"]["kid"] / best["alone"], "< 1")


if __name__ == "__main__":
    main()
