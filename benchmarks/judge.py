"""Score folders of pictures with an extractor that fedsd did not train: a script given by `--realism`.

The script must offer `MobileNetV2`, `features(folder, net)`, `kid(x, y)` and `fid(x, y)`.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np


class Judge:
    """The extractor and its distances."""

    def __init__(self, script: Path) -> None:
        if not script.is_file():
            print(f"skipped: no scoring script at {script} (--realism)")
            sys.exit(0)
        spec = importlib.util.spec_from_file_location("realism", script)
        assert spec and spec.loader
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.net = self.module.MobileNetV2().eval()

    def features(self, folder: Path) -> np.ndarray:
        """Return features (N, 1280) of a folder's pictures, sorted by path."""
        return self.module.features(folder, self.net)

    def kid(self, real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
        """Return KID x 1000: mean and standard deviation over subsets."""
        return self.module.kid(real, fake)

    def fid(self, real: np.ndarray, fake: np.ndarray) -> float:
        """Return the Fréchet distance in this extractor's features."""
        return self.module.fid(real, fake)


def nearest_names(fake: np.ndarray, real: np.ndarray, names: list[str]) -> list[str]:
    """Return for each row of `fake` (N, D) the name of its nearest row of `real` (M, D), Euclidean."""
    squared = (fake**2).sum(1)[:, None] + (real**2).sum(1)[None] - 2 * fake @ real.T
    return [names[i] for i in squared.argmin(1)]


def write_pictures(pictures: list[Any], folder: Path) -> Path:
    """Write PIL pictures as NNN.png into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:04d}.png")
    return folder
