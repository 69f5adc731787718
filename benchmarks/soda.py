"""SODA beside adapters of its size on real pictures, and the federated mean of its clients beside each of them.

    python benchmarks/soda.py --data DIR --realism SCRIPT [--jobs 2] [--out DIR]

DIR is a folder of emoji with an index.csv as the preset `emoji` reads it. For each style every method trains on the
same pictures, in the same order and with the same noise, and draws the same prompts from the same seeds. LoRA, OFT and
HRA have the smallest size whose parameters are no fewer than SODA's, BOFT has PEFT's own block of 4 (where its CUDA
extension cannot be built, PEFT turns BOFT into one layer of blocks and a scale); SVDiff is SODA without its rotation.
All adapt the same layers: the attention of U-Net and text encoder, as the preset `soda` does.

Each method has a learning rate of its own: of two candidates the one with the lower KID on the style `--sweep`, which
counts like any other style; `--rate METHOD=RATE` leaves the choice out. SODA wins a style where both its KID and its
class score (prompts whose nearest real picture of the style bears their name) are better than those of every peer.

What is finished stays in `--out` and is not done again: a run that was cut off goes on.
"""

import argparse
import copy
import csv
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from judge import Judge, write_pictures
from peft import BOFTConfig, HRAConfig, OFTConfig, inject_adapter_in_model
from PIL import Image
from points import record
from section import table
from styles import judge_style, run

from fedsd import config as configuration
from fedsd.base import adapters, load
from fedsd.base.denoise import encode_pixels
from fedsd.base.load import Base, weights_sha
from fedsd.base.training import Descent, Fit, Pictures, Shared, descend
from fedsd.cli import evaluate, sampling
from fedsd.cli.grids import grid
from fedsd.cli.run import read_preset
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.data.shares import layout_of
from fedsd.methods import lora, soda
from fedsd.strategies.recorded import received_updates

COMMAND = "python benchmarks/soda.py --data DIR --realism SCRIPT"
STYLES = (
    "fluent_3d", "fluent_high_contrast", "fxemoji", "noto", "noto_blob", "openmoji_black", "serenity_pixel", "twemoji",
)  # fmt: skip
RATES = {
    "soda": (1e-2, 3e-2), "lora": (5e-3, 1.5e-2), "oft": (1e-2, 3e-2), "boft": (1e-2, 3e-2), "hra": (1e-2, 3e-2),
    "svdiff": (1e-2, 3e-2),
}  # fmt: skip
PEERS = tuple(RATES)[1:]
TEXT_RATE = 0.3  # of LoRA's rate in the text encoder over that in the U-Net, as in fedsd's defaults
INJECTED = {
    "oft": lambda layers: OFTConfig(r=0, oft_block_size=4, target_modules=layers),
    "boft": lambda layers: BOFTConfig(boft_block_size=4, target_modules=layers),
    "hra": lambda layers: HRAConfig(r=2, target_modules=layers),
}


@dataclass(frozen=True)
class Plan:
    """What all cells have in common; a folder of results belongs to one plan."""

    data: Path
    realism: Path
    out: Path
    steps: int
    batch: int
    pictures: int
    draw_steps: int
    seed: int
    text_encoder: bool

    @property
    def descent(self) -> Descent:
        """How long to train."""
        return Descent(self.steps, self.batch, 0.0, "float32", caption_dropout=0.1)


@dataclass(frozen=True, eq=False)
class Real:
    """A style's real pictures: what is trained on (latents, names, uint8 pixels), and features of both splits."""

    latents: torch.Tensor
    names: list[str]
    shown: np.ndarray
    train: np.ndarray
    held_out: np.ndarray

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
        base, parts = load.load("tiny"), dict[str, Any]()
        data = configuration.from_run_config(configuration.defaults() | read_preset("emoji")).data
        for split in ("train", "heldout"):
            where = data.where.replace("split=train", f"split={split}")
            examples = read(plan.data, layout_of(replace(data, where=where, styles=style)))
            unit = pixels(examples, base.size)
            shown = evaluate.as_bytes(unit).permute(0, 2, 3, 1).numpy()
            with TemporaryDirectory() as folder:
                write_pictures([Image.fromarray(picture) for picture in shown], Path(folder))
                parts[split] = judge_of(plan.realism).features(Path(folder))
            if split == "train":
                parts |= {"latents": encode_pixels(base, torch.from_numpy(unit)).numpy(), "shown": shown}
                parts["names"] = [example.caption for example in examples]
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **parts)
    with np.load(file) as kept:
        latents, names = torch.from_numpy(kept["latents"]), [str(name) for name in kept["names"]]
        return Real(latents, names, kept["shown"], kept["train"], kept["heldout"])


@dataclass(frozen=True, eq=False)
class Trained:
    """What a method made of the base: the model to draw with, the numbers that it trained, and the losses."""

    model: AbstractContextManager[Base]
    parameters: int
    losses: tuple[float, float]


@contextmanager
def within(base: Base, carried: AbstractContextManager[None]) -> Iterator[Base]:
    """Within the block, the base as it computes with what it carries."""
    with carried:
        yield base


def train(base: Base, of: Pictures, method: str, rate: float, plan: Plan) -> Trained:
    """Train a method's adapter from the base itself."""
    if method == "base":
        return Trained(nullcontext(base), 0, (float("nan"),) * 2)
    if method in INJECTED:
        return train_injected(base, of, method, rate, plan)
    if method == "lora":
        ranked = lora.Settings(plan.descent, rate, TEXT_RATE * rate, plan.text_encoder, rank=lora_rank(base, plan))
        fit = lora.fit(base, of, Shared(), {}, seed=plan.seed, settings=ranked)
        size = sum(factor.A.size + factor.B.size for factor in fit.shared.lora.values())
        carried = adapters.adapted(base, fit.shared.lora)
    else:
        settings = soda.Settings(plan.descent, rate, rate, plan.text_encoder)
        whole = method == "soda"
        fit = (
            soda.fit(base, of, Shared(), {}, seed=plan.seed, settings=settings)
            if whole
            else fit_spectrum(base, of, plan.seed, settings)
        )
        size = sum(v.size for name, v in fit.shared.arrays.items() if whole or name.endswith(".shift"))
        carried = soda.adapted(base, fit.shared, settings.form)
    return Trained(within(base, carried), size, (fit.progress.loss_first, fit.progress.loss_last))


def fit_spectrum(base: Base, of: Pictures, seed: int, settings: soda.Settings) -> Fit:
    """Train the shifts of the spectrum alone, the rotation held at the identity: SVDiff (arXiv 2303.11305)."""
    layers = tuple(soda.targets(base, settings.text_encoder, settings.convolutions))
    with soda.trainable(base, soda.fresh(base, layers), layers, settings) as changes:
        for change in changes.values():
            change.turns.requires_grad_(False)
        shifts = {"params": [c.shift for c in changes.values()], "lr": settings.shift_lr, "setting": "--rate svdiff"}
        optimiser = torch.optim.AdamW([shifts], weight_decay=soda.WEIGHT_DECAY)
        generator = torch.Generator().manual_seed(seed)
        progress = descend(base, of, [optimiser], settings.descent, generator, text_trained=settings.text_encoder)
        found = {f"{layer}.{kind}": v for layer, change in changes.items() for kind, v in change.arrays().items()}
    return Fit(Shared(arrays=found), {}, progress)


def train_injected(base: Base, of: Pictures, method: str, rate: float, plan: Plan) -> Trained:
    """Train one of PEFT's adapters in a copy of the base, which leaves nothing to be removed from the base."""
    model = replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))
    torch.manual_seed(plan.seed)  # PEFT draws where an adapter starts
    for name, component in adapters.components(model, plan.text_encoder).items():
        layers = [layer for layer in adapters.target_shapes(base, plan.text_encoder) if layer.startswith(f"{name}.")]
        config = INJECTED[method]([layer.removeprefix(f"{name}.") for layer in layers])
        inject_adapter_in_model(config, component, adapter_name=method)
    modules = adapters.components(model, plan.text_encoder).values()
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    group = {"params": trained, "lr": rate, "setting": f"--rate {method}"}
    optimiser, generator = torch.optim.AdamW([group], weight_decay=0.0), torch.Generator().manual_seed(plan.seed)
    progress = descend(model, of, [optimiser], plan.descent, generator, text_trained=plan.text_encoder)
    if any(torch.equal(was, now) for was, now in zip(before, trained, strict=True)):
        raise RuntimeError(f"a part of {method}'s adapter was not trained")
    size = sum(p.numel() for p in trained)
    return Trained(nullcontext(model), size, (progress.loss_first, progress.loss_last))


def soda_size(base: Base, text_encoder: bool) -> int:
    """Return how many numbers SODA trains."""
    return sum(v.size for v in soda.fresh(base, tuple(soda.targets(base, text_encoder, False))).values())


def lora_size(base: Base, text_encoder: bool, rank: int) -> int:
    """Return how many numbers LoRA trains."""
    return rank * sum(sum(shape) for shape in adapters.target_shapes(base, text_encoder).values())


def lora_rank(base: Base, plan: Plan) -> int:
    """Return the lowest rank with no fewer parameters than SODA."""
    return -(-soda_size(base, plan.text_encoder) // lora_size(base, plan.text_encoder, 1))


def scored(plan: Plan, style: str, model: AbstractContextManager[Base], folder: Path) -> dict[str, Any]:
    """Draw a style's prompts with a model and judge them; the base must then be as it was."""
    base, real = load.load("tiny"), real_of(plan, style)
    with model as carrying:
        paint = partial(sampling.pictures, carrying, steps=plan.draw_steps)
        evaluate.draw(paint, real.prompts(plan.pictures), folder)
    if weights_sha(base.unet, base.text_encoder, base.vae) != base.sha:
        raise RuntimeError(f"the base was changed by what drew {folder}")
    return judge_style(judge_of(plan.realism), folder, real.held_out, real.train, real.names)


def folder_of(plan: Plan, style: str, method: str, rate: float) -> Path:
    """Return where a cell's pictures and score lie."""
    return plan.out / "pictures" / style / f"{method}-{rate:g}"


def cell(plan: Plan, style: str, method: str, rate: float) -> dict[str, Any]:
    """Train, draw and judge one method in one style, or read what it gave before."""
    folder, begun = folder_of(plan, style, method, rate), time.monotonic()
    file = folder / "score.json"
    if not file.exists():
        base, real = load.load("tiny"), real_of(plan, style)
        trained = train(base, Pictures(real.latents, real.names), method, rate, plan)
        found = scored(plan, style, trained.model, folder)
        first, last = trained.losses
        more = {"parameters": trained.parameters, "loss_first": first, "loss_last": last}
        file.write_text(json.dumps(found | more | {"rate": rate, "seconds": time.monotonic() - begun}))
    return json.loads(file.read_text())


def one_thread_each(threads: int) -> None:
    """Let a worker use its share of the cores."""
    torch.set_num_threads(threads)


def cells(plan: Plan, wanted: Sequence[tuple[str, str, float]], pool: ProcessPoolExecutor) -> dict[Any, dict[str, Any]]:
    """Return the score of each (style, method, rate)."""
    waiting, found = {pool.submit(cell, plan, *key): key for key in wanted}, {}
    for done in as_completed(waiting):
        found[waiting[done]] = done.result()
        print(*waiting[done], json.dumps(done.result()), flush=True)
    return found


def federated(plan: Plan, style: str, rate: float, opts: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run the preset with four clients of one style; judge their mean and what each of them last sent."""
    data = configuration.flatten({"data": {k.removeprefix("data."): v for k, v in read_preset("emoji").items()
                                           if k.startswith("data.")}})  # fmt: skip
    sets = data | {
        "data.styles": style, "run.record": "true", "run.rounds": opts.rounds, "run.seed": plan.seed,
        "node.private-dir": plan.out / "nodes", "strategy.name": "fedavg", "soda.shift-lr": rate, "soda.turn-lr": rate,
        "train.steps": opts.round_steps, "train.batch-size": plan.batch,
        "lora.text-encoder": str(plan.text_encoder).lower(),
    }  # fmt: skip
    folder = plan.out / "federated"
    run("soda", plan.data, folder, ["--no-report", *(p for k, v in sets.items() for p in ("-s", f"{k}={v}"))], 4)
    done, received, base = sampling.finished(folder), received_updates(folder), load.load("tiny")
    models = {"mean": done.arrays["fedavg"]} | {c: u.arrays for c, u in sorted(received[max(received)].items())}
    scores = {}
    for name, arrays in models.items():
        model = within(base, soda.adapted(base, Shared(arrays=arrays), done.config.soda.form))
        scores[name] = scored(plan, style, model, plan.out / "pictures" / "federated" / name)
        print("federated", style, name, json.dumps(scores[name]), flush=True)
    return scores


def better(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[bool, bool]:
    """Say whether KID and class score are better."""
    return ours["kid"] < theirs["kid"], ours["names_right"] > theirs["names_right"]


def sd15_sizes() -> tuple[int, int]:
    """Return SODA's parameters and those of LoRA at rank 16 on the attention of SD 1.5's U-Net, from its shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    base = replace(load.load("tiny"), unet=unet)
    return soda_size(base, False), lora_size(base, False, 16)


def sheet(plan: Plan, rates: Mapping[str, float], styles: Sequence[str], columns: int) -> None:
    """Write grid.png: real pictures and each method's, `columns` prompts of each style."""
    rows = {"real": list[np.ndarray]()} | {method: [] for method in rates}
    prompts = real_of(plan, styles[0]).prompts(columns)
    for style in styles:
        real = real_of(plan, style)
        prompts = real.prompts(columns)
        rows["real"] += [real.shown[real.names.index(prompt)] for prompt in prompts]
        for method, rate in rates.items():
            files = [folder_of(plan, style, method, rate) / f"{i:03d}.png" for i in range(columns)]
            rows[method] += [np.asarray(Image.open(file)) for file in files]
    titles = [f"{style}: {prompt}" for style in styles for prompt in real_of(plan, style).prompts(columns)]
    grid(list(rows.items()), titles).save(plan.out / "grid.png")


def summary(plan: Plan, scores: Mapping[str, Mapping[str, Any]], fleet: Mapping[str, Mapping[str, Any]]) -> int:
    """Write scores.csv and summary.md; returns the styles that SODA wins against all peers in both measures."""
    styles = list(scores["soda"])
    won = {peer: {s: better(scores["soda"][s], scores[peer][s]) for s in styles} for peer in PEERS}
    wins = sum(all(all(won[peer][s]) for peer in PEERS) for s in styles)
    keys = ("kid", "kid_std", "fid", "names_right", "parameters", "rate", "loss_first", "loss_last", "seconds")
    with (plan.out / "scores.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["method", "style", *keys])
        writer.writerows([m, s, *(c[k] for k in keys)] for m, of in scores.items() for s, c in of.items())
        writer.writerows([f"federated-{m}", "", *(c.get(k, "") for k in keys)] for m, c in fleet.items())
    shown = [
        (m, of[styles[0]]["parameters"], f"{of[styles[0]]['rate']:g}",
         *(f"{of[s]['kid']:.1f} / {of[s]['names_right']:.2f}" for s in styles))
        for m, of in scores.items()
    ]  # fmt: skip
    counted = [(peer, *(sum(w[i] for w in won[peer].values()) for i in (0, 1)), sum(map(all, won[peer].values())))
               for peer in PEERS]  # fmt: skip
    ours, theirs = sd15_sizes()
    parts = [
        "KID x 1000 to held-out pictures / class score:", table(("method", "parameters", "rate", *styles), shown),
        f"Styles of {len(styles)} that SODA wins:", table(("against", "KID", "class score", "both"), counted),
        f"Against all of them in both: {wins} of {len(styles)}.",
        f"On the attention of SD 1.5's U-Net: SODA {ours:,} parameters, LoRA of rank 16 {theirs:,}.",
    ]  # fmt: skip
    if fleet:
        rows = [
            (name, f"{c['kid']:.1f}", f"{c['kid_std']:.1f}", f"{c['names_right']:.2f}") for name, c in fleet.items()
        ]
        parts += ["Four clients of one style:", table(("adapter", "KID x 1000", "its deviation", "class score"), rows)]
    (plan.out / "summary.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts), flush=True)
    return wins


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-soda")
    args.add_argument("--jobs", type=int, default=2, help="processes")
    args.add_argument("--styles", default=",".join(STYLES))
    args.add_argument("--steps", type=int, default=80)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--pictures", type=int, default=100, help="drawn per style and method, 20 or more")
    args.add_argument("--draw-steps", type=int, default=12)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--sweep", default="fxemoji", help="style on which learning rates are chosen")
    args.add_argument("--rate", action="append", default=[], help="METHOD=RATE, without a choice")
    args.add_argument("--unet-only", action="store_true", help="leave the text encoder as it is")
    args.add_argument("--federated", default="openmoji_black", help="style of the four clients; empty: no run")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--round-steps", type=int, default=40)
    args.add_argument("--columns", type=int, default=2, help="prompts of each style in the grid")
    args.add_argument("--no-record", action="store_true")
    return args.parse_args()


def main() -> None:
    """Choose the rates, train, draw and judge all methods, run the federation, and keep the points."""
    opts, began = arguments(), time.monotonic()
    plan = Plan(
        opts.data.absolute(), opts.realism.absolute(), opts.out.absolute(), opts.steps, opts.batch, opts.pictures,
        opts.draw_steps, opts.seed, not opts.unet_only,
    )  # fmt: skip
    judge_of(plan.realism)
    plan.out.mkdir(parents=True, exist_ok=True)
    kept = plan.out / "plan.json"
    asked = json.dumps(asdict(plan), default=str)
    if kept.exists() and kept.read_text() != asked:
        raise SystemExit(f"{plan.out} holds results of {kept.read_text()}; give another --out")
    kept.write_text(asked)
    styles = opts.styles.split(",")
    tried = RATES | {m: (float(r),) for m, r in (text.split("=") for text in opts.rate)}
    threads = max(1, (os.cpu_count() or 1) // opts.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(opts.jobs, context, initializer=one_thread_each, initargs=(threads,)) as pool:
        for prepared in [pool.submit(real_of, plan, style) for style in dict.fromkeys([opts.sweep, *styles])]:
            prepared.result()
        swept = [(opts.sweep, m, r) for m, rates in tried.items() if len(rates) > 1 for r in rates]
        found = cells(plan, swept, pool)
        best = {
            m: min(rs, key=lambda r: found[opts.sweep, m, r]["kid"] if len(rs) > 1 else r) for m, rs in tried.items()
        }
        rates = {"base": 0.0} | best
        found |= cells(plan, [(s, m, r) for s in styles for m, r in rates.items()], pool)
    scores = {m: {s: found[s, m, r] for s in styles} for m, r in rates.items()}
    fleet = federated(plan, opts.federated, rates["soda"], opts) if opts.federated else {}
    wins = summary(plan, scores, fleet)
    sheet(plan, rates, styles, opts.columns)
    if opts.no_record:
        return
    seconds = time.monotonic() - began
    if set(styles) == set(STYLES):
        record("soda.wins_of_8", wins, ">= 6", command=COMMAND, seconds=seconds)
    if fleet:
        ratio = fleet["mean"]["kid"] / min(c["kid"] for name, c in fleet.items() if name != "mean")
        record("soda.federated_kid_over_best_client", ratio, "< 1", command=COMMAND, seconds=seconds)


if __name__ == "__main__":
    main()
