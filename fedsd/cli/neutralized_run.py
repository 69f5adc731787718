"""`fedsd neutralize`: descend L_g on the Inference Edge Server, and show what that does to pictures."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsd.base import adapters, denoise, load
from fedsd.base.load import Base
from fedsd.cli.grids import grid, parameters_text, save_grid
from fedsd.cli.run_config import read_config, require_factors
from fedsd.hybrid.neutral import NAME, save_neutralised
from fedsd.hybrid.neutralize import Losses, Neutralised, Teaching, neutralise
from fedsd.lowrank import LoRA
from fedsd.store import RunFolder

SHOWN = 6  # pictures of each row of the sheet
SERVERS = ("base", "neutral", "neutralised")  # what may make the early steps
# Generic prompts are these in the run's caption template, unless a file has others.
THINGS = (
    "cat", "dog", "bird", "fish", "horse", "house", "car", "boat", "train", "tree", "flower", "leaf", "lemon", "cake",
    "cup", "chair", "book", "clock", "key", "hat", "shoe", "ball", "sun", "cloud",
)  # fmt: skip


def read_prompts(file: Path | None, template: str) -> tuple[str, ...]:
    """Return the generic prompts of a file, one a line, or the built-in ones; ValueError when it cannot be read."""
    if file is None:
        return tuple(template.format(label=thing) for thing in THINGS)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"the prompts file {file} cannot be read: {error.strerror}") from None
    return tuple(line.strip() for line in lines if line.strip())


def neutralise_run(folder: Path, teaching: Teaching, show: Callable[[str], None]) -> dict[str, Any]:
    """Neutralise the latest round of a run, keep the adapter where servers look, and draw the sheet.

    Returns paths, losses and picture errors as JSON values. Raises ValueError when there is no round, when adapters do
    not fit the base, or when the loss did not fall: then nothing is written.
    """
    require_factors(folder, "fedsd neutralize")
    run, base = RunFolder(folder), load.load(read_config(folder).base.name)
    server_round, lora_neu, clusters, w = inputs_of(run)
    found = neutralise(base, lora_neu, clusters, w, teaching, show)
    ratio = loss_ratio(found, teaching)
    if not ratio < 1:
        raise ValueError(f"L_g went to {ratio:.3f} of what it was, so nothing was written; lower --lr ({teaching.lr})")
    figures = {
        "round": server_round, "loss_ratio": ratio, "before": _figures(found.before, teaching),
        "after": _figures(found.after, teaching),
    }  # fmt: skip
    how = {key: value for key, value in asdict(teaching).items() if key != "prompts"}
    kept = save_neutralised(run.path, server_round, found.lora, {**figures, "teaching": how})
    run.export(NAME, found.lora)
    pictures = draw_endings(base, {"base": {}, "neutral": lora_neu, "neutralised": found.lora}, clusters, teaching)
    sheet = run.path / "grids" / f"neutral-r{server_round:02d}.png"
    _save_sheet(sheet, pictures, teaching, read_config(folder).base.name)
    return {**figures, "picture_error": picture_errors(pictures), "adapter": str(kept), "grid": str(sheet)}


def inputs_of(run: RunFolder) -> tuple[int, LoRA, dict[str, LoRA], dict[str, float]]:
    """Return the latest round, its neutral adapter as it came from the training server, ΔΘ_k by name, and w_k = β_k.

    Clusters that share no factors are left out, and what the others weigh sums to 1 then too.
    """
    server_round = run.latest_round()
    if server_round is None:
        raise ValueError(f"{run.path} has no complete round yet; wait for the first one (fedsd watch {run.path})")
    state, loras = run.load_round(server_round)
    w = {f"cluster-{key}": float(entry["beta"]) for key, entry in state.get("clusters", {}).items()}
    if not w:
        raise ValueError(
            f"round {server_round} of {run.path} has no clusters, so there is nothing to be neutral between"
        )
    held = {name: weight for name, weight in w.items() if loras[name]}
    if 0 < len(held) < len(w):
        w = {name: weight / sum(held.values()) for name, weight in held.items()}
    return server_round, loras[NAME], {name: loras[name] for name in w}, w


def loss_ratio(found: Neutralised, teaching: Teaching) -> float:
    """L_g after over L_g before, on held-out prompts."""
    return found.after.total(teaching) / found.before.total(teaching)


def draw_endings(
    base: Base, servers: Mapping[str, LoRA], clusters: Mapping[str, LoRA], teaching: Teaching
) -> dict[str, dict[str, np.ndarray]]:
    """Return uint8 pictures (N, H, W, 3) of held-out prompts by cluster and by who made the early steps.

    "alone" is the cluster's adapter in all steps, which the others are judged by.
    """
    prompts = [teaching.held_out[i % len(teaching.held_out)] for i in range(SHOWN)]
    seeds, split = [teaching.seed + i for i in range(SHOWN)], teaching.split
    middles = {name: _early(base, lora, prompts, seeds, split) for name, lora in servers.items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, lora in clusters.items():
        starts = {"alone": _early(base, lora, prompts, seeds, split), **middles}
        with torch.no_grad(), adapters.adapted(base, lora):
            batch = denoise.encode_batch(base, prompts, seeds)
            ends = {who: denoise.late(base, x_mid, batch, split) for who, x_mid in starts.items()}
        found[name] = {who: denoise.decode_latents(base, x) for who, x in ends.items()}
    return found


def _early(base: Base, lora: LoRA, prompts: list[str], seeds: list[int], split: denoise.Split) -> torch.Tensor:
    with torch.no_grad(), adapters.adapted(base, lora):
        return denoise.early(base, denoise.encode_batch(base, prompts, seeds), split)


def picture_errors(pictures: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Return, by cluster and server, the RMS difference from the picture of the cluster alone, as a share of 255."""
    return {
        name: {who: _rms(made[who], made["alone"]) for who in made if who != "alone"} for name, made in pictures.items()
    }


def _rms(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.sqrt(np.square(left.astype(np.float64) - right).mean()) / 255)


def _figures(losses: Losses, teaching: Teaching) -> dict[str, float]:
    return {**asdict(losses), "total": losses.total(teaching)}


def _save_sheet(
    file: Path, pictures: Mapping[str, Mapping[str, np.ndarray]], teaching: Teaching, base_name: str
) -> None:
    prompts = [teaching.held_out[i % len(teaching.held_out)] for i in range(SHOWN)]
    rows = [
        (name if who == "alone" else f"{who}, then {name}", list(made))
        for name, by_server in pictures.items()
        for who, made in by_server.items()
    ]
    split = teaching.split
    about = {"Steps": split.steps, "Server steps": split.server_steps, "CFG scale": split.guidance, "Sampler": "DDIM"}
    save_grid(grid(rows, prompts), file, parameters_text(" | ".join(prompts), {**about, "Model": base_name}))


def table(result: Mapping[str, Any]) -> str:
    """Return the losses before and after, and each ending's error, as text."""
    before, after = result["before"], result["after"]
    lines = [f"{'':12}{'before':>10}{'after':>10}"]
    lines += [
        f"{name:12}{before[key]:10.5f}{after[key]:10.5f}"
        for name, key in (("L_neu", "neu"), ("L_mix", "mix"), ("  spread", "spread"), ("L_g", "total"))
    ]
    lines += ["", f"{'error of':12}" + "".join(f"{who:>13}" for who in SERVERS)]
    lines += [
        f"{name:12}" + "".join(f"{errors[who]:13.4f}" for who in SERVERS)
        for name, errors in result["picture_error"].items()
    ]
    return "\n".join([*lines, "", f"adapter {result['adapter']}", f"grid    {result['grid']}"])
