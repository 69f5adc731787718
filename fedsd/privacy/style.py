"""The style embedding z_i of a client: the only thing besides the adapter that says anything about its pictures.

Algorithm 1, line 30 encodes the prompts, section 3.2 of arXiv 2508.04745 the images; both are here.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsd.base.load import Clip


def style_embedding(clip: Clip, pixels: np.ndarray, batch: int = 64) -> np.ndarray:
    """Return z (D,): the L2-normalised mean of the L2-normalised embeddings of pixels (N, 3, H, W) in [-1, 1]."""
    return _mean_direction(image_embeddings(clip, pixels, batch))


def prompt_embedding(clip: Clip, captions: list[str], batch: int = 256) -> np.ndarray:
    """Return z (D,) from the captions instead (line 30)."""
    device = next(clip.model.parameters()).device
    with torch.no_grad():
        parts = [
            clip.model.encode_text(clip.tokenizer(captions[i : i + batch]).to(device), normalize=True)
            for i in range(0, len(captions), batch)
        ]
    return _mean_direction(torch.cat(parts))


def image_embeddings(clip: Clip, pixels: np.ndarray, batch: int = 64) -> Tensor:
    """Return L2-normalised image embeddings (N, D) of pixels (N, 3, H, W) in [-1, 1]."""
    device = next(clip.model.parameters()).device
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (clip.mean, clip.std))
    parts = []
    with torch.no_grad():
        for part in torch.from_numpy(pixels).split(batch):
            x = F.interpolate(part.to(device), (clip.size, clip.size), mode="bicubic", antialias=True)
            parts.append(clip.model.encode_image(((x.clamp(-1, 1) + 1) / 2 - mean) / std, normalize=True))
    return torch.cat(parts)


def _mean_direction(embeddings: Tensor) -> np.ndarray:
    return F.normalize(embeddings.float().mean(0), dim=0).cpu().numpy()
