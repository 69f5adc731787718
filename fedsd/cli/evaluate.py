"""`fedsd evaluate`: KID, FID and CLIP score of every adapter of a run, per style, against real pictures.

The methods are those that seed 2508.04745 compares: the base alone, FedAvg, FedGeoMed and FLoRA (formed from the last
round's client adapters), the style's cluster, mix and neutral; other runs are added with `--against`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedsd.base import load
from fedsd.base.load import Clip
from fedsd.base.training import Shared
from fedsd.cli import sampling
from fedsd.cli.report import write_report
from fedsd.cli.sampling import Finished, Painter
from fedsd.data.example import Example
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.data.shares import layout_of
from fedsd.lowrank import LoRA
from fedsd.metrics.alignment import clip_score
from fedsd.metrics.distances import fid, kid
from fedsd.metrics.features import INCEPTION_FILE, extract, load_extractor
from fedsd.store import write_file
from fedsd.strategies.rules import RULES

METHODS = ("base", "fedavg", "fedgeomed", "flora", "cluster", "mix", "neutral")
FORMED = ("fedgeomed", "flora")  # of the clients' factors, which the folder keeps
SUBSETS = 50


def evaluate(
    folder: Path,
    *,
    pictures: int,
    against: Mapping[str, Path],
    methods: Sequence[str] = (),
    where: str = "",
    extractor: str = "auto",
) -> dict[str, Any]:
    """Score the run in `folder`; the result is also written to its evaluation.json and into its report.

    pictures: generated per style and method; prompts are captions of the style's clients, seeds are fixed, so all
    methods answer the same. where: which rows of data.index are the real pictures, e.g. held-out ones; else the
    clients' own. Returns {"n", "extractor", "scores": {method: {style: {kid, kid_std, fid, clip_score, n, n_real}}}}.
    Raises ValueError for unknown methods, runs without known pictures, and too few pictures.
    """
    run = sampling.finished(folder)
    if not run.examples:
        raise ValueError(
            f"the clients of {folder} held folders of their own, which this machine does not see; evaluate on a node"
        )
    formed = FORMED if run.config.shares_factors else ()
    chosen = tuple(methods) or (*(name for name in METHODS if name not in FORMED or name in formed), *against)
    if unknown := sorted(set(chosen) - {*METHODS, *against}):
        raise ValueError(f"unknown method {unknown[0]!r}; choose from {', '.join((*METHODS, *against))}")
    base, clip = load.load(run.config.base.name), load.load_clip()
    net, net_name = _extractor(extractor, clip)
    others = {name: sampling.finished(path) for name, path in against.items()}
    scores: dict[str, dict[str, Any]] = {method: {} for method in chosen}
    for style in sorted(set(run.style_of.values())):
        real = extract(net, as_bytes(pixels(real_pictures(run, style, where), base.size)))
        prompts = prompts_of(run, style, pictures)
        for method in chosen:
            source, kind = (others[method], "cluster") if method in others else (run, method)
            with sampling.carried(source, base, shared_of(source, kind, style)) as paint:
                made = draw(paint, prompts, folder / "evaluation" / method / style)
            scores[method][style] = _scores(real, made, prompts, net, clip)
    result = {"n": pictures, "extractor": net_name, "round": run.state["round"], "where": where, "scores": scores}
    write_file(folder / "evaluation.json", json.dumps(result, indent=1).encode())
    write_report(folder)
    return result


def prompts_of(run: Finished, style: str, count: int) -> list[str]:
    """Return `count` captions of the style's clients, all of them once before any comes again, in seeded order."""
    captions = run.captions(style)
    order = np.random.default_rng(run.config.run.seed).permutation(len(captions))
    return [captions[order[i % len(order)]] for i in range(count)]


def adapter_of(run: Finished, method: str, style: str) -> LoRA:
    """Return the factors that `method` would use for `style`."""
    return shared_of(run, method, style).lora


def shared_of(run: Finished, method: str, style: str) -> Shared:
    """Return what `method` would use for `style`, whatever the clients share; ValueError where it needs factors."""
    if method == "base":
        return Shared()
    name = run.cluster_of_style(style) if method == "cluster" else method
    if name in run.loras and method not in FORMED:
        return run.shared(name)
    if not run.config.shares_factors:
        raise ValueError(
            f"{method} combines the clients' LoRA factors, and {run.config.method.name!r} has none; leave it out"
        )
    return Shared(_formed(run, method))


def _formed(run: Finished, method: str) -> LoRA:
    names = sorted(name for name in run.loras if name.startswith("clients/"))
    clients: Mapping[str, Any] = run.state["clients"]  # type: ignore[assignment]
    rule = {"fedgeomed": "geometric-median", "flora": "flora", "fedavg": "zero-padding"}[method]
    weights = [clients[name.removeprefix("clients/")]["n"] for name in names]
    return RULES[rule].combine([run.loras[name] for name in names], weights).lora


def _extractor(name: str, clip: Clip) -> tuple[nn.Module, str]:
    if name == "auto":
        has_inception = (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE).is_file()
        name = "inception" if has_inception else "embedded"
    return load_extractor(name, clip), name


def real_pictures(run: Finished, style: str, where: str) -> tuple[Example, ...]:
    """Return the real pictures of `style`: the rows of data.index that `where` asks for, or what the clients hold."""
    if not where:
        return tuple(e for mine in run.examples.values() for e in mine if e.style == style)
    data = replace(run.config.data, where=where, styles=style)
    return read(Path(data.root).expanduser(), layout_of(data))


def as_bytes(unit: np.ndarray) -> Tensor:
    """Return pixels (N, 3, H, W) in [-1, 1] as uint8."""
    return torch.from_numpy(((unit + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


def draw(paint: Painter, prompts: list[str], folder: Path) -> Tensor:
    """Draw the prompts, keep the pictures in `folder`, and return them as uint8 (N, 3, H, W)."""
    made = paint(prompts)
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(made):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return torch.from_numpy(made).permute(0, 3, 1, 2)


def _scores(real: Tensor, made: Tensor, prompts: list[str], net: nn.Module, clip: Clip) -> dict[str, Any]:
    fake = extract(net, made)
    nothing = nn.Identity()
    subset = min(100, len(real), len(fake))
    distance, frechet = kid(real, fake, nothing, subset, SUBSETS), fid(real, fake, nothing)
    return {
        "kid": distance.mean, "kid_std": distance.std, "fid": frechet.mean,
        "clip_score": clip_score(clip, made, prompts)[0], "n": len(fake), "n_real": len(real),
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """Return KID x 1000 and CLIP score per method and style, the best of each style marked."""
    scores = result["scores"]
    styles = sorted(next(iter(scores.values())))
    best = {style: min(scores, key=lambda method: scores[method][style]["kid"]) for style in styles}
    rows = Table(
        "method",
        *styles,
        title=f"KID x 1000 (CLIP score), {result['n']} pictures a cell, extractor {result['extractor']}",
    )
    for method, cells in scores.items():
        shown = [
            f"{1000 * cells[s]['kid']:.1f}{'*' if best[s] == method else ''} ({cells[s]['clip_score']:.0f})"
            for s in styles
        ]
        rows.add_row(method, *shown)
    console = Console(width=max(80, 26 * (len(styles) + 1)))
    with console.capture() as shown_table:
        console.print(rows)
    return shown_table.get()
