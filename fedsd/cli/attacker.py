"""What the attacker of `fedsd audit tokens` has: public pictures of every style, and uploads that he made from them.

He knows the run config, the base and the open_clip model, as a server of the run does, and which styles there may be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fedsd import config as configuration
from fedsd.base import adapters, denoise
from fedsd.base.denoise import encode_pixels
from fedsd.base.load import Base, Clip
from fedsd.base.training import Pictures, Shared
from fedsd.data import drawn
from fedsd.data.example import Example, Layout
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.data.shares import layout_of
from fedsd.lowrank import Array, LoRA
from fedsd.methods.table import METHODS, Place, rates_in
from fedsd.privacy.style import image_embeddings

PER_STYLE = 48  # public pictures of each style, where fedsd draws them
BANK_SEED = 990_001  # of those pictures; no run draws from it


@dataclass(frozen=True, eq=False)
class Shadow:
    """An upload that the attacker made himself. style: number of the style whose public pictures it was trained on."""

    style: int
    lora: LoRA
    losses: Array


@dataclass(frozen=True, eq=False)
class Attacker:
    """What he knows. styles: S names; bank: (S, D) mean embeddings of public pictures; texts: (S, D) of descriptions;
    looks: (S, D) mean embeddings of what the base draws with the shadows of each style.
    """

    styles: tuple[str, ...]
    bank: Array
    texts: Array
    shadows: tuple[Shadow, ...]
    looks: Array

    @property
    def shadow_styles(self) -> list[int]:
        """The style of each shadow."""
        return [shadow.style for shadow in self.shadows]


def public_pictures(
    config: configuration.Config, styles: Sequence[str], bank: Path | None, cache: Path
) -> dict[str, list[Example]]:
    """Return public pictures by style: those of a folder, or drawn ones with a seed of their own, kept in `cache`.

    Raises ValueError when a style has fewer than two.
    """
    if bank is not None:
        examples = read(bank, replace(layout_of(config.data), where="", index="", styles=tuple(styles)))
    elif config.data.root:
        raise ValueError(
            "the attacker needs public pictures of the run's styles; give a folder with one for each style (--bank)"
        )
    else:
        drawn.write(cache, styles, PER_STYLE, BANK_SEED)
        examples = read(cache, Layout(template=config.data.template))
    found = {style: [example for example in examples if example.style == style] for style in styles}
    if poor := [style for style, mine in found.items() if len(mine) < 2]:
        raise ValueError(f"the attacker has fewer than two public pictures of {poor[0]}; put more into --bank")
    return found


def know(
    config: configuration.Config, base: Base, clip: Clip, pictures: Mapping[str, Sequence[Example]], *, shadows: int,
    prompts: Sequence[str],
) -> Attacker:  # fmt: skip
    """Return the attacker after his preparations: embeddings of the pictures and `shadows` uploads for each style."""
    styles = tuple(pictures)
    size = config.base.size or base.size
    shown = {style: pixels(tuple(mine), size) for style, mine in pictures.items()}
    bank = np.stack([image_embeddings(clip, shown[style]).cpu().numpy().mean(axis=0) for style in styles])
    made = [
        shadow
        for number, style in enumerate(styles)
        for shadow in _shadows_of(config, base, shown[style], pictures[style], number, shadows)
    ]
    looks = [
        np.concatenate([drawings(base, clip, one.lora, prompts) for one in made if one.style == number]).mean(axis=0)
        for number in range(len(styles))
    ]
    return Attacker(styles, bank, descriptions(clip, styles, prompts), tuple(made), np.stack(looks))


def descriptions(clip: Clip, styles: Sequence[str], prompts: Sequence[str]) -> Array:
    """Return (S, D): open_clip's mean embedding of the prompts "…, <style> style"."""
    with torch.no_grad():
        rows = [
            clip.model.encode_text(
                clip.tokenizer([f"{prompt}, {style.replace('_', ' ')} style" for prompt in prompts]).to(
                    next(clip.model.parameters()).device
                ),
                normalize=True,
            ).mean(0)
            for style in styles
        ]
    array: Array = torch.stack(rows).cpu().numpy()
    return array


def drawings(base: Base, clip: Clip, lora: LoRA, prompts: Sequence[str], steps: int = 10) -> Array:
    """Return embeddings (P, D) of what the base draws with an adapter, each prompt from a seed of its own."""
    with adapters.adapted(base, lora):
        made = denoise.generate(base, list(prompts), list(range(len(prompts))), steps=steps, guidance=1.5)
    unit = made.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    embedded: Array = image_embeddings(clip, unit).cpu().numpy()
    return embedded


def _shadows_of(
    config: configuration.Config, base: Base, shown: np.ndarray, mine: Sequence[Example], style: int, count: int
) -> list[Shadow]:
    """Train `count` adapters as a client of the run would in its first round, each on its share of the pictures."""
    latents = encode_pixels(base, torch.from_numpy(shown))
    method, rates = METHODS["lora"], rates_in(1, config.run.rounds)
    place = Place(config, config.lora.rank_of(0), Path(), rates)
    found = []
    for number, part in enumerate(np.array_split(np.random.default_rng(style).permutation(len(mine)), count)):
        pictures = Pictures(latents[torch.from_numpy(part)], [mine[i].caption for i in part])
        seed = BANK_SEED + 100 * style + number
        fit = method.fit(base, pictures, Shared(), {}, seed=seed, settings=method.settings(place))
        losses = np.array([fit.progress.loss_first, fit.progress.loss_last])
        found.append(Shadow(style, fit.shared.lora, losses))
    return found
