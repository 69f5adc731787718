"""What clients share besides LoRA factors, for stock diffusers: whole models for `from_pretrained`, or a token."""

import shutil
from pathlib import Path

from fedsd.base import load
from fedsd.base.load import Base
from fedsd.base.tokens import save_token
from fedsd.cli import sampling
from fedsd.cli.sampling import Finished
from fedsd.methods.table import token
from fedsd.seeded import TOKEN


def export_models(run: Finished, out: Path, names: tuple[str, ...]) -> list[Path]:
    """Write the latest round's models as <out>/<name>, all but FedAvg where none is named; returns folders or files.

    Exact: a rotated or wholly trained weight is written as it is, and a token as diffusers' `load_textual_inversion`
    reads it. Raises ValueError for a name that is not there.
    """
    all_ = [name for name in run.arrays if "/" not in name]
    there = [name for name in all_ if name != "fedavg"]
    if unknown := sorted(set(names) - set(all_)):
        raise ValueError(f"round {run.state['round']} has no model {unknown[0]!r}; choose from {', '.join(all_)}")
    return [_written(run, name, out / name) for name in names or there]


def _written(run: Finished, name: str, place: Path) -> Path:
    shared = run.shared(name)
    if TOKEN in shared.arrays:
        return save_token(token(run.config, shared), place)
    base = load.load(run.config.base.name)
    with sampling.carried(run, base, shared):
        return save_model(base, place)


def save_model(base: Base, folder: Path) -> Path:
    """Write the base as it computes now, whole or not at all; an older model in `folder` is replaced."""
    growing = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(growing, ignore_errors=True)
    growing.parent.mkdir(parents=True, exist_ok=True)
    base.pipeline().save_pretrained(growing)
    shutil.rmtree(folder, ignore_errors=True)
    growing.rename(folder)
    return folder
