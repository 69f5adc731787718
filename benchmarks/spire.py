"""SPIRE on real pictures: six styles share a backbone, and two that nobody saw get an embedding each, and nothing else.

    python benchmarks/spire.py --data DIR --realism SCRIPT [--out DIR] [--smoke] [--no-record]

Two federated runs of the same rounds, steps and pictures: SPIRE (`strategy.name = "everyone"`, one backbone, the model
of the population) and FedAvg of LoRA factors. Then a newcomer of each unseen style has 16 pictures and as many steps as
any other, to fit

    embedding   the embedding alone (`fedsd adapt`), for 3 rates x 3 lengths; the middle of both is what is compared
    full        all weights of the U-Net, from the population; of several rates the best counts
    fedavg      nothing: FedAvg's model as it is;  fedavg-lora   FedAvg's factors, trained on
    local       factors of its own, from the untouched base

KID is to held-out pictures of the style, by an extractor that fedsd did not train, for names that the newcomer holds no
picture of. Unseen are by default the two styles in black and white. The base was made from `noto` and `fluent_3d`, so
those are no newcomers; `twemoji`, `noto_blob` and `fxemoji` are near `noto`, so that the population is good at them
already; and `serenity_pixel` is what the autoencoder cannot draw, so that no model comes near it.
Last, the models of the six old styles are read from the disk again and drawn again: nothing may have changed.
"""

import argparse
import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from judge import Judge
from points import record
from section import table
from styles import judge_pictures, run

from fedsd.base import adapters, load
from fedsd.base.denoise import encode_pixels
from fedsd.base.training import Pictures, Shared
from fedsd.base.weights import weight
from fedsd.cli import evaluate, grids, sampling
from fedsd.cli.adapt import Newcomer, adapt_run
from fedsd.cli.run import read_preset
from fedsd.client_app import CACHE, OWN
from fedsd.data.example import Example
from fedsd.data.images import pixels
from fedsd.lowrank import Array, resize_lora
from fedsd.methods import spire
from fedsd.methods.table import METHODS, Place
from fedsd.store import PrivateFolder
from fedsd.strategies.starts import warm_start

COMMAND = "python benchmarks/spire.py --data DIR --realism SCRIPT"
STYLES = (
    "twemoji", "noto", "noto_blob", "fxemoji", "fluent_3d", "serenity_pixel", "openmoji_black", "fluent_high_contrast",
)  # fmt: skip
SMALL = {
    "rounds": 1, "steps": 3, "lengths": [1, 2, 3], "pictures": 20, "few": 20, "sampling_steps": 2, "full_lr": [1e-3],
}  # fmt: skip
NUMBERS = (
    ("--rounds", 3, "of both runs"), ("--steps", 160, "of each client in a round"), ("--batch-size", 8, "of training"),
    ("--rank", 8, "of all factors"), ("--local", 16, "pictures that a newcomer has"), ("--pictures", 100, "of a model"),
    ("--few", 40, "pictures of a cell of the sweep, and of an old style"), ("--seed", 0, "of newcomers"),
    ("--sampling-steps", sampling.STEPS, "of each picture"),
)  # fmt: skip
POPULATION = "mix"  # its name in a round


@dataclass(frozen=True, eq=False)
class Model:
    """A client's model: what it shares, and its embedding (width,), zeros for none. trained: numbers fitted for it."""

    shared: Shared
    v: Array
    trained: int = 0


class Study:
    """The two runs, what newcomers hold, and how pictures are drawn and judged."""

    def __init__(self, opts: argparse.Namespace) -> None:
        """Run both federations, unless they are there, and choose the prompts and each newcomer's pictures."""
        self.opts, self.out, self.judge, self.seconds, self.share = (
            opts,
            opts.out.absolute(),
            Judge(opts.realism),
            0.0,
            1.0,
        )
        old = [style for style in STYLES if style not in opts.unseen]
        data = {key: value for key, value in read_preset("emoji").items() if key.startswith("data.")}
        settings = data | {
            "data.styles": ",".join(old), "node.private-dir": self.out / "nodes", "run.rounds": opts.rounds,
            "train.steps": opts.steps, "train.batch-size": opts.batch_size, "lora.ranks": f'"{opts.rank}"',
        }  # fmt: skip
        ways = {"spire": ("everyone", opts.set), "emoji": ("fedavg", opts.set_fedavg)}
        for preset, (strategy, more) in ways.items():
            sets = [f"{key}={value}" for key, value in settings.items()] + [f"strategy.name={strategy}", *more]
            told = ["--no-report", *(part for text in sets for part in ("-s", text))]
            self.seconds += run(preset, opts.data.absolute(), self.out / preset, told, clients=len(old))
        self.done, self.fedavg = self.finished(), sampling.finished(self.out / "emoji").shared(POPULATION)
        self.base = load.load(self.done.config.base.name)
        self.place = Place(self.done.config.training("spire"), opts.rank, self.out / "nodes" / CACHE)
        self.none = np.zeros(spire.width(self.base), np.float32)
        rng = np.random.default_rng(opts.seed)
        self.train, self.held_by, self.held_out = {}, {}, {}
        for style in opts.unseen:
            self.train[style] = evaluate.real_pictures(self.done, style, self.done.config.data.where)
            chosen = sorted(rng.permutation(len(self.train[style]))[: opts.local].tolist())
            self.held_by[style] = [self.train[style][i] for i in chosen]
            self.held_out[style] = judge_pictures(self.judge, self.done, style, "split=heldout")
        local = {example.caption for mine in self.held_by.values() for example in mine}
        known = set.intersection(*({example.caption for example in mine} for mine in self.train.values()))
        names = sorted(known - local)
        self.prompts = [names[i] for i in np.resize(rng.permutation(len(names)), opts.pictures)]

    def finished(self) -> sampling.Finished:
        """Read SPIRE's last round from the disk."""
        return sampling.finished(self.out / "spire")

    def draw(self, model: Model, prompts: list[str], *names: str) -> Path:
        """Draw into a folder of these names; returns it."""

        def paint(prompts: Sequence[str]) -> np.ndarray:
            return sampling.pictures(self.base, prompts, steps=self.opts.sampling_steps)

        folder = self.out.joinpath("pictures", *names)
        shutil.rmtree(folder, ignore_errors=True)  # an earlier call may have drawn more
        with spire.adapted(self.base, model.shared, model.v):
            evaluate.draw(paint, prompts, folder)
        return folder

    def kept_by(self, client: str, shared: Shared) -> Model:
        """Return the model of a client that keeps its embedding in its private folder."""
        kept = PrivateFolder(self.out / "nodes", client).load(OWN)
        if kept is None:
            raise SystemExit(f"{client} keeps no embedding below {self.out / 'nodes'}; run again into a new --out")
        own = {key.removeprefix("after."): value for key, value in kept[0].items() if key.startswith("after.")}
        return Model(shared, spire.vector(shared, own), sum(value.size for value in own.values()))

    def old_styles(self, name: str) -> dict[str, float]:
        """KID of each old style, drawn with the backbone and the embedding as they are on the disk now."""
        done, found = self.finished(), {}
        for client, style in sorted(done.style_of.items()):
            captions = sorted(example.caption for example in done.examples[client])
            prompts = [captions[i] for i in np.linspace(0, len(captions) - 1, self.opts.few).astype(int)]
            made = self.draw(self.kept_by(client, done.shared(POPULATION)), prompts, "old", name, style)
            held_out = judge_pictures(self.judge, done, style, "split=heldout")
            found[style] = float(self.judge.kid(held_out, self.judge.features(made))[0])
            print(f"{name} {style}: {found[style]:.2f}", flush=True)
        return found

    def embedding(self, style: str, lr: float, steps: int) -> Model:
        """The newcomer's model by `fedsd adapt`, from a folder of its own."""
        folder, client = self.out / "newcomers" / style, f"{style}-{lr:g}-{steps}"
        if not folder.exists():
            write_folder(self.held_by[style], folder)
        wish = Newcomer(client, folder, self.out / "adapted" / client, POPULATION, steps, lr, self.opts.seed)
        self.share = adapt_run(self.out / "spire", wish, self.out / "nodes")["share"]
        return self.kept_by(client, self.done.shared(POPULATION))

    def pictures(self, style: str) -> Pictures:
        """What the newcomer trains on, for the peers."""
        unit = torch.from_numpy(pixels(self.held_by[style], self.base.size))
        return Pictures(encode_pixels(self.base, unit), [example.caption for example in self.held_by[style]])

    def full(self, style: str, lr: float) -> Model:
        """All weights of the U-Net fitted from the population's: SPIRE leaves one bias out, for which its v stands."""
        shared, given = self.done.shared(POPULATION), METHODS["spire"].settings(self.place)
        settings = replace(
            given, descent=replace(given.descent, steps=self.opts.length), backbone="full", form="bias", drop=0.0,
            lr=lr, embedding_lr=lr,
        )  # fmt: skip
        inside = {f"{layer}.weight": f.B @ f.A for layer, f in shared.lora.items() if layer.startswith("unet.")}
        moved = {name: change.reshape(weight(self.base, name).shape) for name, change in inside.items()}
        text = {layer: factor for layer, factor in shared.lora.items() if not layer.startswith("unet.")}
        whole = Shared(arrays={**shared.arrays, **moved})
        with adapters.adapted(self.base, text):  # the population's words stay as they are
            fit = spire.fit(self.base, self.pictures(style), whole, {}, seed=self.opts.seed, settings=settings)
        return Model(Shared(text, fit.shared.arrays), fit.own["v"], sum(p.numel() for p in self.base.unet.parameters()))

    def lora(self, style: str, start: Shared) -> Model:
        """Factors fitted from `start` as a client of the next round would, or from nothing."""
        given, seed = METHODS["lora"].settings(self.place), self.opts.seed
        settings = replace(given, descent=replace(given.descent, steps=self.opts.length))
        begin = Shared(warm_start(resize_lora(start.lora, self.opts.rank), seed) if start.lora else {})
        fit = METHODS["lora"].fit(self.base, self.pictures(style), begin, {}, seed=seed, settings=settings)
        return Model(fit.shared, self.none, sum(f.B.size + f.A.size for f in fit.shared.lora.values()))


def write_folder(examples: Sequence[Example], folder: Path) -> None:
    """Write pictures and captions as a person would keep them: one folder with a metadata.jsonl."""
    growing = folder.with_name(f".{folder.name}")
    growing.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, example in enumerate(examples):
        name = f"{number:02d}{example.path.suffix}"
        shutil.copyfile(example.path, growing / name)
        lines.append(json.dumps({"file_name": name, "text": example.caption}))
    (growing / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    growing.rename(folder)


def compare(study: Study) -> list[dict[str, Any]]:
    """Fit, draw and judge all models of all unseen styles; one line for each, the sweep's with few pictures."""
    opts, found = study.opts, list[dict[str, Any]]()
    population = Model(study.done.shared(POPULATION), study.none)

    def judged(style: str, name: str, model: Model | None, made: Path, lr: float, steps: int) -> None:
        mean, std = study.judge.kid(study.held_out[style], study.judge.features(made))
        trained, n = model.trained if model else 0, len(list(made.glob("*.png")))
        found.append({
            "style": style, "model": name, "lr": lr, "steps": steps, "trained": trained, "kid_x1000": float(mean),
            "kid_std": float(std), "n": n, "n_real": len(study.held_out[style]), "folder": str(made),
        })  # fmt: skip
        print(style, name, f"lr {lr:g} steps {steps}: {mean:.1f}", flush=True)

    # names are the same in all styles, so are the pictures of a model that knows none of them
    common = {"population": population, "fedavg": Model(study.fedavg, study.none)}
    drawn = {name: study.draw(model, study.prompts, name) for name, model in common.items()}
    rates = METHODS["spire"].settings(study.place)
    for style in opts.unseen:
        for name, made in drawn.items():
            judged(style, name, None, made, 0, 0)
        for lr in opts.lrs:
            for steps in opts.lengths:
                model, cell = study.embedding(style, lr, steps), f"{lr:g}-{steps}"
                made = study.draw(model, study.prompts[: opts.few], "sweep", style, cell)
                judged(style, "sweep", model, made, lr, steps)
                if (lr, steps) == (opts.lrs[1], opts.length):
                    judged(style, "embedding", model, study.draw(model, study.prompts, "embedding", style), lr, steps)
        for lr in opts.full_lr:
            model = study.full(style, lr)
            judged(style, "full", model, study.draw(model, study.prompts, "full", f"{style}-{lr:g}"), lr, opts.length)
        for name, start in (("fedavg-lora", study.fedavg), ("local", Shared())):
            model = study.lora(style, start)
            judged(style, name, model, study.draw(model, study.prompts, name, style), rates.lr, opts.length)
    return found


def least(found: list[dict[str, Any]], style: str, name: str) -> dict[str, Any]:
    """Return the line of a model, its best where there are several."""
    lines = [line for line in found if (line["style"], line["model"]) == (style, name)]
    return min(lines, key=lambda line: line["kid_x1000"])


def report(study: Study, found: list[dict[str, Any]], before: dict[str, float], after: dict[str, float]) -> str:
    """Return the tables: all models, the sweep, and the old styles."""
    opts, rows = study.opts, []
    for name in dict.fromkeys(line["model"] for line in found if line["model"] != "sweep"):
        mine = [least(found, style, name) for style in opts.unseen]
        rows.append([name, mine[0]["trained"], *(f"{line['kid_x1000']:.0f} ± {line['kid_std']:.0f}" for line in mine)])
    text = [table(["model", "numbers fitted", *opts.unseen], rows)]
    for style in opts.unseen:
        cells = [line for line in found if (line["style"], line["model"]) == (style, "sweep")]
        kid = {(line["lr"], line["steps"]): line["kid_x1000"] for line in cells}
        half = sum(value <= least(found, style, "population")["kid_x1000"] / 2 for value in kid.values())
        text.append(f"{style}, {opts.few} pictures a cell; {half} of {len(kid)} cells at most half of the population's")
        rows = [[f"{lr:g}", *(f"{kid[lr, steps]:.0f}" for steps in opts.lengths)] for lr in opts.lrs]
        text.append(table(["rate, steps", *opts.lengths], rows))
    rows = [[style, f"{before[style]:.2f}", f"{after[style]:.2f}"] for style in sorted(before)]
    return "\n\n".join([*text, table(["old style", "KID before", "after"], rows)]) + "\n"


def write_sheet(study: Study, found: list[dict[str, Any]], columns: int = 8) -> Path:
    """Write the grid: population, embedding, full, local and real pictures of each unseen style."""
    shown = list(dict.fromkeys(study.prompts))[:columns]
    at = [study.prompts.index(prompt) for prompt in shown]
    rows = []
    for style in study.opts.unseen:
        for name in ("population", "embedding", "full", "local"):
            files = sorted(Path(least(found, style, name)["folder"]).glob("*.png"))
            rows.append((f"{style}: {name}", [grids.Image.open(files[i]) for i in at]))
        real = {example.caption: example for example in study.train[style]}
        unit = evaluate.as_bytes(pixels([real[prompt] for prompt in shown], study.base.size))
        rows.append((f"{style}: real", list(unit.permute(0, 2, 3, 1).numpy())))
    grids.save_grid(grids.grid(rows, shown), study.out / "spire.png", " | ".join(shown))
    return study.out / "spire.png"


def sd15_share() -> str:
    """Return SPIRE's share of Stable Diffusion 1.5's U-Net, from its shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    trained, weights = unet.time_embedding.linear_2.out_features, sum(p.numel() for p in unet.parameters())
    return f"{trained} of {weights} ({100 * trained / weights:.2g} %)"


def main() -> None:
    """Run, adapt, draw, judge and record."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-spire")
    args.add_argument("--unseen", nargs=2, choices=STYLES[2:], default=["openmoji_black", "fluent_high_contrast"])
    for name, default, told in NUMBERS:
        args.add_argument(name, type=type(default), default=default, help=told)
    args.add_argument("--lrs", type=float, nargs=3, default=[2e-2, 5e-2, 1e-1], help="of the embedding")
    args.add_argument("--lengths", type=int, nargs=3, default=[50, 100, 200], help="steps; peers take the middle")
    args.add_argument("--full-lr", type=float, nargs="+", default=[1e-4, 5e-4])
    args.add_argument("--set", "-s", action="append", default=[], help="setting of SPIRE's run")
    args.add_argument("--set-fedavg", action="append", default=[], help="setting of FedAvg's run")
    args.add_argument("--smoke", action="store_true", help="everything, but too small to mean anything")
    args.add_argument("--no-record", action="store_true")
    opts = args.parse_args()
    if opts.smoke:
        vars(opts).update(SMALL, no_record=True)
    opts.length = opts.lengths[1]
    study, began = Study(opts), time.monotonic()
    before = study.old_styles("before")
    found = compare(study)
    after = study.old_styles("after")
    with (study.out / "spire.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [key for key in found[0] if key != "folder"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    text = report(study, found, before, after)
    (study.out / "spire.md").write_text(text)
    kid = {(line["style"], line["model"]): least(found, line["style"], line["model"])["kid_x1000"] for line in found}
    others = ("population", "full", "fedavg", "fedavg-lora", "local")
    over = {name: max(kid[style, "embedding"] / kid[style, name] for style in opts.unseen) for name in others}
    print(text, write_sheet(study, found), sep="\n")
    print("worst KID of the embedding over that of", ", ".join(f"{name} {over[name]:.3f}" for name in others))
    print(f"numbers fitted on {study.done.config.base.name}: {100 * study.share:.2g} %; on SD 1.5: {sd15_share()}")
    if opts.no_record:
        return
    kept = {"command": COMMAND, "seconds": study.seconds + time.monotonic() - began}
    record("spire.share_of_weights", study.share, "<= 0.0001", **kept)
    record("spire.kid_over_population", over["population"], "<= 0.5", **kept)
    record("spire.kid_over_finetune", over["full"], "<= 0.5", **kept)
    change = max(abs(after[style] - before[style]) for style in before)
    record("spire.old_styles_kid_change", change, "= 0", **kept)


if __name__ == "__main__":
    main()
