"""The neutral adapter that the IES carries: the one of a run's latest complete round."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsd.lowrank import LoRA
from fedsd.store import RunFolder

NAME = "neutral"


@dataclass(frozen=True, eq=False)
class Neutral:
    """lora_neu of a round; sha: SHA-256 of its layers, shapes and values."""

    server_round: int
    lora: LoRA
    sha: str


def lora_sha(lora: LoRA) -> str:
    """Return the SHA-256 over names, shapes and values of all factors, so that two machines can tell theirs agree."""
    digest = hashlib.sha256()
    for layer in sorted(lora):
        for side, half in (("B", lora[layer].B), ("A", lora[layer].A)):
            digest.update(f"{layer}.{side}{half.shape}".encode())
            digest.update(np.ascontiguousarray(half, np.float32).tobytes())
    return digest.hexdigest()


def load_neutral(folder: Path, server_round: int) -> Neutral:
    """Return the neutral adapter of a complete round in a run folder, which is only read: the run may be going on.

    Raises ValueError when it cannot be read or is not finite.
    """
    lora = RunFolder(folder).load_adapter(server_round, NAME)
    for layer, factor in lora.items():
        if not (np.isfinite(factor.B).all() and np.isfinite(factor.A).all()):
            raise ValueError(
                f"the neutral adapter of round {server_round} holds numbers that are not finite, in {layer}"
            )
    return Neutral(server_round, lora, lora_sha(lora))
