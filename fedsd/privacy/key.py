"""The secret that the devices of a federation share and no server has, and what they hide by it.

The style embedding z is turned by a random orthogonal matrix that follows from the key. Cosines stay as they are, and
with them everything that a server does with z: clusters, distances to the centre, arrivals. What z says by itself, to
anybody who has the same open_clip, is gone. What it says beside the others' z, their mutual cosines, stays:
`attacks.geometry` measures that, and `blur` would help against it at the price of the groups.

An adapter ΔW = B A can be turned on both sides: P B A R. Sums, SVD cuts, norms and singular values are those of the
product turned, so a server computes with it blindly, and it cannot be put on a base without the key.
"""

import hashlib
import os
import re
import secrets
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA

FILE = "federation.key"
REMEDY = "make one with `openssl rand -hex 32 > federation.key` and give every device of the federation the same"


def read_key(file: Path) -> bytes:
    """Return the 32 bytes of a key, kept as 64 hexadecimal digits; ValueError when there is none."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the federation's key {file} cannot be read ({type(error).__name__}); {REMEDY}") from None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError(f"{file} holds no key of 64 hexadecimal digits; {REMEDY}")
    return bytes.fromhex(text)


def simulated_key(root: Path) -> bytes:
    """Return the key of the simulated devices that keep their private folders below `root`; the first one draws it.

    Several processes may come at once: the file is linked into place whole, and whoever comes second takes it as it is.
    """
    file = root / FILE
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        drawn = root / f".{FILE}.{secrets.token_hex(8)}"
        descriptor = os.open(drawn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as writable:
            writable.write(f"{secrets.token_hex(32)}\n")
            writable.flush()
            os.fsync(descriptor)
        try:
            os.link(drawn, file)
        except FileExistsError:
            pass
        finally:
            drawn.unlink()
    return read_key(file)


@lru_cache(maxsize=256)
def orthogonal(key: bytes, name: str, size: int) -> Array:
    """Return the orthogonal matrix (size, size), float64, that a key gives under a name.

    It is uniform over all (Haar measure): Q of a Gaussian matrix with the signs of R's diagonal taken out (Mezzadri
    2007, arXiv math-ph/0609050, section 5).
    """
    seed = int.from_bytes(hashlib.sha256(key + f"/{name}/{size}".encode()).digest(), "big")
    Q, R = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    turned: Array = Q * np.sign(np.diag(R))
    turned.setflags(write=False)
    return turned


def turn(z: Array, key: bytes) -> Array:
    """Return z (..., D) turned by the key's matrix, in z's own type; cosines and lengths stay."""
    turned: Array = (z @ orthogonal(key, "style", z.shape[-1]).T).astype(z.dtype)
    return turned


def turn_back(z: Array, key: bytes) -> Array:
    """Return the z (..., D) that `turn` was given."""
    plain: Array = (z @ orthogonal(key, "style", z.shape[-1])).astype(z.dtype)
    return plain


def turn_adapter(lora: LoRA, key: bytes) -> dict[str, Factor]:
    """Return P B A R of every layer, with matrices P and R of its own from the key."""
    return {
        layer: Factor(
            (orthogonal(key, f"{layer}.B", factor.shape[0]) @ factor.B).astype(factor.B.dtype),
            (factor.A @ orthogonal(key, f"{layer}.A", factor.shape[1])).astype(factor.A.dtype),
        )
        for layer, factor in lora.items()
    }


def turn_adapter_back(lora: LoRA, key: bytes) -> dict[str, Factor]:
    """Return the adapter whose products `turn_adapter` turned."""
    return {
        layer: Factor(
            (orthogonal(key, f"{layer}.B", factor.shape[0]).T @ factor.B).astype(factor.B.dtype),
            (factor.A @ orthogonal(key, f"{layer}.A", factor.shape[1]).T).astype(factor.A.dtype),
        )
        for layer, factor in lora.items()
    }


def blur(z: Array, key: bytes, width: float = 0.2, size: int = 1024) -> Array:
    """Return keyed random Fourier features (..., size) of z, of length 1: cosines become exp(-‖z - z'‖² / 2 width²).

    Styles farther apart than a few widths are all equally far, so that their mutual distances say nothing; those much
    nearer stay near. Clients of one style come apart too, though, by more than what the number of their pictures
    explains, so that a server that judges groups by it parts them; a run does not offer it. Rahimi and Recht 2007,
    section 3, with frequencies and phases from the key; off by 1 / √size.
    """
    seed = int.from_bytes(hashlib.sha256(key + b"/blur").digest(), "big")
    rng = np.random.default_rng(seed)
    frequencies = rng.standard_normal((z.shape[-1], size)) / width
    features = np.cos(z @ frequencies + rng.uniform(0, 2 * np.pi, size))
    blurred: Array = (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(z.dtype)
    return blurred


def noisy(z: Array, scale: float, rng: np.random.Generator) -> Array:
    """Return z (..., D) with Gaussian noise of length about `scale`, of length 1 again."""
    shaken = z + rng.standard_normal(z.shape) * scale / np.sqrt(z.shape[-1])
    unit: Array = (shaken / np.linalg.norm(shaken, axis=-1, keepdims=True)).astype(z.dtype)
    return unit
