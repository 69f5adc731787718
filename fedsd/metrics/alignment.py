"""Does the picture show what the prompt says: CLIP score, and the share of right names among nearest pictures."""

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsd.base.load import Clip
from fedsd.lowrank import Array
from fedsd.metrics.features import ImageTower, extract


@torch.inference_mode()
def clip_score(clip: Clip, pixels: Tensor, prompts: Sequence[str], batch_size: int = 64) -> tuple[float, Array]:
    """100 max(cos(image, prompt), 0) of Hessel et al. (2021, arXiv 2104.08718), with torchmetrics' factor.

    pixels: uint8 (N, 3, H, W); prompts: N texts. Returns the mean and the scores (N,), in [0, 100].
    Raises ValueError when the numbers differ or are 0.
    """
    _same_count("pictures", len(pixels), "prompts", len(prompts))
    tower = ImageTower(clip).eval()
    image = F.normalize(extract(tower, pixels, batch_size), dim=-1)
    tokens = clip.tokenizer(list(prompts)).to(tower.mean.device)
    text = torch.cat([clip.model.encode_text(part, normalize=True) for part in tokens.split(batch_size)])
    scores: Array = (100 * (image * text.double().cpu()).sum(-1).clamp_min(0)).numpy()
    return float(scores.mean()), scores


def names_right(features_fake: Tensor, prompts: Sequence[str], features_real: Tensor, names: Sequence[str]) -> float:
    """Share of generated pictures whose nearest real picture, by cosine of features, bears the name in the prompt.

    features_fake: (N, D), prompts: N texts; features_real: (M, D), names: M names. A prompt's name is the longest of
    `names` in it, as whole words, whatever the case: "a hot dog" asks for "hot dog" and not for "dog".
    Raises ValueError when the numbers differ or a prompt holds none of the names.
    """
    _same_count("generated pictures", len(features_fake), "prompts", len(prompts))
    _same_count("real pictures", len(features_real), "names", len(names))
    known = sorted({name.casefold() for name in names}, key=len, reverse=True)
    asked = [_name_in(prompt, known) for prompt in prompts]
    fake, real = F.normalize(features_fake.double(), dim=-1), F.normalize(features_real.double(), dim=-1)
    nearest = (fake @ real.T).argmax(1).tolist()
    return float(np.mean([names[j].casefold() == name for j, name in zip(nearest, asked, strict=True)]))


def _name_in(prompt: str, known: Sequence[str]) -> str:
    for name in known:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt.casefold()):
            return name
    raise ValueError(f"prompt {prompt!r} holds none of the {len(known)} names of the real pictures; leave it out")


def _same_count(left: str, n: int, right: str, m: int) -> None:
    if n != m or not n:
        raise ValueError(f"got {n} {left} and {m} {right}; both numbers must be equal and at least 1")
