"""Feature extractors: uint8 pictures (N, 3, H, W) -> features (N, D), for KID, FID and nearest pictures.

A KID or FID belongs to its extractor: name the extractor beside every figure, and call only Inception's so.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsd.base.load import Clip

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class ImageTower(nn.Module):
    """Image tower of an open_clip model: uint8 (N, 3, H, W) -> (N, D) float32, each row of length √D.

    CLIP is trained on directions only, so lengths are noise; at √D, KID's kernel (x·y / D + 1)³ is (cos + 1)³.
    Pictures are resized to the tower's square (bicubic, antialiased); aspect ratios are not kept.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.visual = clip.model.visual
        self.size, self.num_features = clip.size, clip.dim
        device = next(self.visual.parameters()).device
        self.register_buffer("mean", torch.tensor(clip.mean, device=device).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std, device=device).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of uint8 pictures."""
        unit = pixels.to(self.mean) / 255
        if unit.shape[-2:] != (self.size, self.size):
            unit = F.interpolate(unit, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        embeddings: Tensor = self.visual((unit - self.mean) / self.std)
        return F.normalize(embeddings, dim=-1) * self.num_features**0.5


def load_extractor(name_or_path: str | Path, clip: Clip | None = None) -> nn.Module:
    """Return a frozen extractor, fit for torchmetrics' `feature=`.

    name_or_path: "embedded" (the image tower of `clip`, D = clip.dim), "inception" (the 2015 FID weights, D = 2048,
        from torch hub's cache), or a file: those weights under a name that ends in .pth, else a TorchScript module that
        maps uint8 (N, 3, H, W) to (N, D).
    Nothing is downloaded. Raises ValueError naming the file that is missing and where to get it.
    """
    if name_or_path == "embedded":
        if clip is None:
            raise ValueError('extractor "embedded" needs the open_clip model: load_extractor("embedded", load_clip())')
        extractor: nn.Module = ImageTower(clip)
    elif name_or_path == "inception":
        extractor = _inception(Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE)
    elif Path(name_or_path).suffix == ".pth":
        extractor = _inception(Path(name_or_path))
    else:
        extractor = _script(Path(name_or_path))
    for weight in extractor.parameters():  # requires_grad_ of the module is refused by TorchScript
        weight.requires_grad_(False)
    return extractor.eval()


@torch.inference_mode()
def extract(extractor: nn.Module, pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Return features (N, D) float64 on the CPU; the extractor sees `batch_size` pictures at a time on its own device.

    pixels: uint8 (N, 3, H, W). Raises ValueError on an empty batch, or when the extractor does not return (N, D).
    """
    if not len(pixels):
        raise ValueError("no pictures to extract features from; give at least one")
    weight = next(itertools.chain(extractor.parameters(), extractor.buffers()), pixels)
    parts = [extractor(part.to(weight.device)).double().cpu() for part in pixels.split(batch_size)]
    features = torch.cat(parts)
    if features.ndim != 2 or len(features) != len(pixels):
        raise ValueError(
            f"the extractor turned {tuple(pixels.shape)} into {tuple(features.shape)}; it must return one row of "
            "features (N, D) for each picture"
        )
    return features


def _inception(weights: Path) -> nn.Module:
    """Inception-v3 of torchmetrics with the weights that FID is defined by (Heusel et al. 2017)."""
    if not weights.is_file():
        raise ValueError(
            f"the Inception weights {weights} are missing; download {INCEPTION_SOURCE} to that place, give another "
            'place as the extractor, or take the extractor "embedded"'
        )
    from torchmetrics.image.fid import NoTrainInceptionV3  # slow to import, and needed for this extractor only

    return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))


def _script(path: Path) -> nn.Module:
    if not path.is_file():
        raise ValueError(
            f'extractor {str(path)!r} is neither "embedded", "inception" nor a file; save one with torch.jit.save'
        )
    try:
        module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"extractor {path} is no TorchScript file ({str(error).splitlines()[0]})") from error
    return module
