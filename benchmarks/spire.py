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
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import Judge
from nodes import kept_by
from points import given, record
from spire_tables import least, report, sd15_share, write_sheet
from styles import FLAT, STEPS, judge_pictures, run

from fedsd.base import adapters, load
from fedsd.base.denoise import encode_pixels
from fedsd.base.training import Pictures, Shared
from fedsd.base.weights import weight
from fedsd.cli import evaluate, sampling
from fedsd.cli.adapt import Newcomer, adapt_run
from fedsd.cli.run import read_preset
from fedsd.client_app import CACHE
from fedsd.data.example import Example
from fedsd.data.images import pixels
from fedsd.lowrank import Array, resize_lora
from fedsd.methods import lora, spire
from fedsd.methods.table import METHODS, Place
from fedsd.strategies.starts import warm_start

OF_BASE = ("noto", "fluent_3d")
OTHERS = ("twemoji", "noto_blob", "fxemoji", "serenity_pixel", "openmoji_black", "fluent_high_contrast")
FEW = ["data.where=split=train;group=Objects"]
SMALL = {
    "rounds": 1, "steps": 3, "lengths": [1, 2, 3], "pictures": 20, "few": 20, "sampling_steps": 2, "full_lr": [1e-3],
    "set": FEW, "set_fedavg": FEW, "no_record": True,
}  # fmt: skip
NUMBERS = (
    ("--rounds", 3, "of both runs"), ("--steps", 120, "of each client in a round"), ("--batch-size", 8, "of training"),
    ("--rank", 8, "of all factors"), ("--local", 16, "pictures that a newcomer has"), ("--pictures", 100, "of a model"),
    ("--few", 32, "pictures of a cell of the sweep, and of an old style"), ("--seed", 0, "of newcomers"),
    ("--sampling-steps", STEPS, "of each picture, by LCM's sampler"),
)  # fmt: skip
OPTIONS = (*(n for n, *_ in NUMBERS), "--unseen", "--lrs", "--lengths", "--full-lr", "--set", "-s", "--set-fedavg")
COMMAND = "python benchmarks/spire.py --data DIR --realism SCRIPT" + given(*OPTIONS)
COLUMNS = 8  # of the grid
POPULATION = "mix"  # its name in a round
HELD_OUT = "split=heldout"


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
        self.opts, self.judge, self.seconds, self.share = opts, Judge(opts.realism), 0.0, 1.0
        old = [*OF_BASE, *(style for style in OTHERS if style not in opts.unseen)]
        data = {key: value for key, value in read_preset("emoji").items() if key.startswith("data.")}
        settings = data | {
            "data.styles": ",".join(old), "run.rounds": opts.rounds, "train.steps": opts.steps,
            "train.batch-size": opts.batch_size, "lora.ranks": opts.rank,
        }  # fmt: skip
        told = repr((settings, opts.set, opts.set_fedavg))  # runs of other settings are other runs
        self.out = opts.out.absolute() / hashlib.sha256(told.encode()).hexdigest()[:8]
        settings["node.private-dir"] = str(self.out / "nodes")
        ways = {"spire": ("everyone", opts.set), "emoji": ("fedavg", opts.set_fedavg)}
        for preset, (strategy, more) in ways.items():
            sets = [f"{key}={value}" for key, value in settings.items()] + [f"strategy.name={strategy}", *more]
            told = ["--no-report", *(part for text in sets for part in ("-s", text))]
            self.seconds += run(preset, opts.data.absolute(), self.out / preset, told, clients=len(old))
        self.done, fedavg = self.finished(), sampling.finished(self.out / "emoji")
        self.base, self.fedavg = load.load(self.done.config.base.name), fedavg.shared(POPULATION)
        given = Place(self.done.config, opts.rank, self.out / "nodes" / CACHE)
        self.spire = METHODS["spire"].settings(given)
        self.factors = METHODS["lora"].settings(replace(given, config=fedavg.config))
        self.none = np.zeros(spire.width(self.base), np.float32)
        rng = np.random.default_rng(opts.seed)
        self.train, self.held_by = {}, {}
        self.held_out = {
            style: judge_pictures(self.judge, self.done, style, HELD_OUT) for style in (*old, *opts.unseen)
        }
        for style in opts.unseen:
            self.train[style] = evaluate.real_pictures(self.done, style, self.done.config.data.where)
            chosen = sorted(rng.permutation(len(self.train[style]))[: opts.local].tolist())
            self.held_by[style] = [self.train[style][i] for i in chosen]
            write_folder(self.held_by[style], self.out / "newcomers" / style)
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
            return sampling.pictures(FLAT.on(self.base), prompts, steps=self.opts.sampling_steps)

        folder = self.out.joinpath("pictures", *names)
        shutil.rmtree(folder, ignore_errors=True)  # an earlier call may have drawn more
        with spire.adapted(self.base, model.shared, model.v):
            evaluate.draw(paint, prompts, folder)
        return folder

    def kept_by(self, client: str, shared: Shared) -> Model:
        """Return the model of a client that keeps its embedding in its private folder."""
        own = kept_by(self.out / "nodes", client)
        return Model(shared, spire.vector(shared, own), sum(value.size for value in own.values()))

    def old_styles(self, name: str) -> dict[str, float]:
        """KID of each old style, drawn with the backbone and the embedding as they are on the disk now."""
        done, found = self.finished(), {}
        for client, style in sorted(done.style_of.items()):
            captions = sorted(example.caption for example in done.examples[client])
            prompts = [captions[i] for i in np.linspace(0, len(captions) - 1, self.opts.few).astype(int)]
            made = self.draw(self.kept_by(client, done.shared(POPULATION)), prompts, "old", name, style)
            found[style] = float(self.judge.kid(self.held_out[style], self.judge.features(made))[0])
            print(f"{name} {style}: {found[style]:.2f}", flush=True)
        return found

    def embedding(self, style: str, lr: float, steps: int) -> Model:
        """The newcomer's model by `fedsd adapt`, from a folder of its own."""
        folder, client = self.out / "newcomers" / style, f"{style}-{lr:g}-{steps}"
        wish = Newcomer(client, folder, self.out / "adapted" / client, POPULATION, steps, lr, self.opts.seed)
        self.share = adapt_run(self.out / "spire", wish, self.out / "nodes")["share"]
        return self.kept_by(client, self.done.shared(POPULATION))

    def real(self, style: str, names: Sequence[str]) -> list[Example]:
        """Real pictures of these names."""
        named = {example.caption: example for example in self.train[style]}
        return [named[name] for name in names]

    def pictures(self, style: str) -> Pictures:
        """What the newcomer trains on, for the peers."""
        unit = torch.from_numpy(pixels(self.held_by[style], self.base.size))
        return Pictures(encode_pixels(self.base, unit), [example.caption for example in self.held_by[style]])

    def full(self, style: str, lr: float) -> Model:
        """All weights of the U-Net fitted from the population's: SPIRE leaves one bias out, for which its v stands."""
        shared, length = self.done.shared(POPULATION), replace(self.spire.descent, steps=self.opts.length)
        settings = replace(
            self.spire, descent=length, backbone="full", form="bias", drop=0.0, lr=lr, embedding_lr=lr
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
        seed = self.opts.seed
        settings = replace(self.factors, descent=replace(self.factors.descent, steps=self.opts.length))
        begin = Shared(warm_start(resize_lora(start.lora, self.opts.rank), seed) if start.lora else {})
        fit = lora.fit(self.base, self.pictures(style), begin, {}, seed=seed, settings=settings)
        return Model(fit.shared, self.none, sum(f.B.size + f.A.size for f in fit.shared.lora.values()))


def write_folder(examples: Sequence[Example], folder: Path) -> None:
    """Write pictures and captions as a person would keep them: one folder with a metadata.jsonl."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier call, perhaps with others
    folder.mkdir(parents=True)
    lines = []
    for number, example in enumerate(examples):
        name = f"{number:02d}{example.path.suffix}"
        shutil.copyfile(example.path, folder / name)
        lines.append(json.dumps({"file_name": name, "text": example.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


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
            judged(style, name, model, study.draw(model, study.prompts, name, style), study.factors.lr, opts.length)
    return found


def main() -> None:
    """Run, adapt, draw, judge and record."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-spire")
    args.add_argument("--unseen", nargs=2, choices=OTHERS, default=["openmoji_black", "fluent_high_contrast"])
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
        vars(opts).update(SMALL)
    opts.length = opts.lengths[1]
    study, began = Study(opts), time.monotonic()
    before = study.old_styles("before")
    found = compare(study)
    after = study.old_styles("after")
    if load.weights_sha(study.base.unet, study.base.text_encoder, study.base.vae) != study.base.sha:
        raise SystemExit("the base is not what it was before the adaptations")
    with (study.out / "spire.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [key for key in found[0] if key != "folder"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    text = report(found, opts.unseen, [(style, f"{before[style]:.2f}", f"{after[style]:.2f}") for style in before])
    (study.out / "spire.md").write_text(text)
    shown = list(dict.fromkeys(study.prompts))[:COLUMNS]
    real = {style: evaluate.as_bytes(pixels(study.real(style, shown), study.base.size)) for style in opts.unseen}
    write_sheet(found, shown, real, study.out / "spire.png")
    kid = {(line["style"], line["model"]): least(found, line["style"], line["model"])["kid_x1000"] for line in found}
    others = ("population", "full", "fedavg", "fedavg-lora", "local")
    over = {name: max(kid[style, "embedding"] / kid[style, name] for style in opts.unseen) for name in others}
    print(text, study.out, sep="\n")
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
