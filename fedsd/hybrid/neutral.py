"""The neutral adapter that the IES carries: the one of a run's latest complete round, neutralised if it was."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsd.lowrank import LoRA
from fedsd.store import RunFolder, load_lora, save_lora

NAME = "neutral"
FOLDER = "neutral"  # of the run folder; rounds themselves are never changed, for runs are resumed from them


@dataclass(frozen=True, eq=False)
class Neutral:
    """lora_neu of a round; sha: SHA-256 of its layers, shapes and values."""

    server_round: int
    lora: LoRA
    sha: str


@dataclass(frozen=True)
class Source:
    """Where a round's neutral adapter is. written: of the neutralised one in nanoseconds, None when there is none."""

    server_round: int
    written: int | None


def lora_sha(lora: LoRA) -> str:
    """Return the SHA-256 over names, shapes and values of all factors, so that two machines can tell theirs agree."""
    digest = hashlib.sha256()
    for layer in sorted(lora):
        for side, half in (("B", lora[layer].B), ("A", lora[layer].A)):
            digest.update(f"{layer}.{side}{half.shape}".encode())
            digest.update(np.ascontiguousarray(half, np.float32).tobytes())
    return digest.hexdigest()


def latest_source(folder: Path) -> Source | None:
    """Return where the neutral adapter of the latest complete round is, None before the first."""
    server_round = RunFolder(folder).latest_round()
    if server_round is None:
        return None
    try:
        return Source(server_round, neutralised_file(folder, server_round).stat().st_mtime_ns)
    except FileNotFoundError:
        return Source(server_round, None)


def neutralised_file(folder: Path, server_round: int) -> Path:
    """Return where the neutralised adapter of a round is kept."""
    return folder / FOLDER / f"r{server_round:02d}.safetensors"


def save_neutralised(folder: Path, server_round: int, lora: LoRA, about: Mapping[str, Any]) -> Path:
    """Keep a round's neutralised adapter, whole or not at all; a server that serves the run takes it up."""
    file = neutralised_file(folder, server_round)
    save_lora(file, lora, about)
    return file


def load_neutral(folder: Path, server_round: int) -> Neutral:
    """Return the neutral adapter of a complete round in a run folder, which is only read: the run may be going on.

    That is the neutralised one where there is one. Raises ValueError when it cannot be read or is not finite.
    """
    file = neutralised_file(folder, server_round)
    lora = load_lora(file) if file.exists() else RunFolder(folder).load_adapter(server_round, NAME)
    for layer, factor in lora.items():
        if not (np.isfinite(factor.B).all() and np.isfinite(factor.A).all()):
            raise ValueError(
                f"the neutral adapter of round {server_round} holds numbers that are not finite, in {layer}"
            )
    return Neutral(server_round, lora, lora_sha(lora))
