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
from fedsd.base.load import Base
from fedsd.base.training import Descent, Pictures, Shared, descend
from fedsd.base.weights import weights_sha
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


def fit_spectrum(base: Base, of: Pictures, seed: int, settings: soda.Settings) -> soda.Fit:
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
    return soda.Fit(Shared(arrays=found), {}, progress)


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
