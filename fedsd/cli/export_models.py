"""Whole models of runs whose clients share more than LoRA factors: a folder that diffusers' `from_pretrained` opens."""

import shutil
from pathlib import Path

from fedsd.base import load
from fedsd.base.load import Base
from fedsd.cli import sampling
from fedsd.cli.sampling import Finished


def export_models(run: Finished, out: Path, names: tuple[str, ...]) -> list[Path]:
    """Write the latest round's models as <out>/<name>, all but FedAvg where none is named; returns the folders.

    Exact: a rotated or wholly trained weight is written as it is. Raises ValueError for a name that is not there.
    """
    there = [name for name in run.arrays if name != "fedavg"]
    if unknown := sorted(set(names) - set(run.arrays)):
        raise ValueError(f"round {run.state['round']} has no model {unknown[0]!r}; choose from {', '.join(run.arrays)}")
    base, written = load.load(run.config.base.name), []
    for name in names or there:
        with sampling.carried(run, base, run.shared(name)):
            written.append(save_model(base, out / name))
    return written


def save_model(base: Base, folder: Path) -> Path:
    """Write the base as it computes now, whole or not at all; an older model in `folder` is replaced."""
    growing = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(growing, ignore_errors=True)
    growing.parent.mkdir(parents=True, exist_ok=True)
    base.pipeline().save_pretrained(growing)
    shutil.rmtree(folder, ignore_errors=True)
    growing.rename(folder)
    return folder
