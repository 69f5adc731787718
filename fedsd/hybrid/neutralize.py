"""The neutralisation loss L_g (section 2.2 of arXiv 2508.04745), descended on the Inference Edge Server.

    L_g     = λ_neu L_neu + λ_mix Σ_k w_k L_mix^k
    L_neu   = D_KL(x_mid ‖ N(0, I)), x_mid after T_early steps with ΔΘ_g,neu
    L_mix^k = E ‖e(x_t, t, p; ΔΘ_g,neu) - e(x_t, t, p; ΔΘ_k)‖² over the early steps, e: guided output of the U-Net

L_neu alone asks for latents without any trace of the prompt, so the two are only ever descended together; it is taken
over the moments of each channel. There are no pictures here, so the teachers of L_mix are the base with each cluster's
adapter, on latents that the neutral adapter itself sampled. Σ_k w_k ‖e - e_k‖² = ‖e - Σ_k w_k e_k‖² + spread: the
best that one adapter can do is the clusters' mean output, of which ΔΘ_g,neu, the mean of their weights, is the first
order; what is left then, the spread, no adapter can remove. docs/decisions/0009 has the reasons.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import scheduler_named
from fedsd.lowrank import LoRA

HELD_OUT = 4  # every fourth prompt is for judging


@dataclass(frozen=True)
class Teaching:
    """How L_g is descended. prompts: generic ones, at least two; split: T, T_early and guidance; lr: of AdamW.

    lambda_neu, lambda_mix: λ of the two terms. Each of `epochs` samples `pictures` latents anew and passes `passes`
    times over their early steps.
    """

    prompts: tuple[str, ...]
    split: denoise.Split
    lambda_neu: float = 0.1
    lambda_mix: float = 1.0
    epochs: int = 4
    passes: int = 2
    pictures: int = 12
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be taught by."""
        if len(set(self.prompts)) < 2:
            raise ValueError(f"neutralising needs two different prompts or more, got {len(set(self.prompts))}")
        if self.split.server_steps < 1:
            raise ValueError("neutralising needs at least one early step; raise --split or --steps")
        if min(self.lambda_neu, self.lambda_mix) < 0 or self.lambda_neu + self.lambda_mix == 0:
            raise ValueError(
                f"lambda_neu and lambda_mix must not be negative, nor both 0; got {self.lambda_neu} and "
                f"{self.lambda_mix}"
            )

    @property
    def held_out(self) -> tuple[str, ...]:
        """The prompts that L_g is judged by and never taught."""
        return self.prompts[::HELD_OUT]

    @property
    def taught(self) -> tuple[str, ...]:
        """The prompts that L_g is descended on."""
        return tuple(p for i, p in enumerate(self.prompts) if i % HELD_OUT)


@dataclass(frozen=True)
class Losses:
    """L_neu in nats per number of x_mid, and Σ_k w_k L_mix^k with the part of it, `spread`, that no adapter removes."""

    neu: float
    mix: float
    spread: float

    def total(self, teaching: Teaching) -> float:
        """L_g."""
        return teaching.lambda_neu * self.neu + teaching.lambda_mix * self.mix


@dataclass(frozen=True, eq=False)
class Neutralised:
    """The adapter after descent, and the losses on held-out prompts before and after."""

    lora: LoRA
    before: Losses
    after: Losses


@dataclass(frozen=True, eq=False)
class Lesson:
    """Latents of each early step, and what the clusters' adapters make of them.

    visited: (T_early, N, 4, h, w), before each step; mean: Σ_k w_k e_k, of the same shape; spread:
    Σ_k w_k E ‖e_k - mean‖².
    """

    prompts: list[str]
    seeds: list[int]
    visited: Tensor
    mean: Tensor
    spread: float


Told = Callable[[str], None]


def neutralise(
    base: Base, lora_neu: LoRA, clusters: Mapping[str, LoRA], w: Mapping[str, float], teaching: Teaching, told: Told
) -> Neutralised:
    """Return ΔΘ_g,neu after descending L_g from `lora_neu`, with the losses on held-out prompts.

    clusters: ΔΘ_k by name; w: their weights, which are made to sum to 1. told: called with a line after each epoch.
    Raises ValueError when an adapter does not fit the base, when there is no cluster, or when L_g stops being finite.
    """
    if not clusters or clusters.keys() != w.keys() or min(w.values()) < 0 or sum(w.values()) == 0:
        raise ValueError(f"neutralising needs cluster adapters with a weight each; got {sorted(clusters)}, {dict(w)}")
    weighted = [(clusters[name], w[name] / sum(w.values())) for name in sorted(clusters)]
    sampler = sampler_of(base, teaching.split)
    judged = sample_lesson(base, lora_neu, weighted, teaching.held_out, _seeds(teaching, 0), sampler, teaching.split)
    before = judge(base, lora_neu, judged, sampler, teaching.split)
    lora = lora_neu
    for epoch in range(1, teaching.epochs + 1):
        seeds = _seeds(teaching, epoch)
        lesson = sample_lesson(base, lora, weighted, teaching.taught, seeds, sampler, teaching.split)
        lora, loss = descend(base, lora, lesson, sampler, teaching)
        told(f"epoch {epoch} of {teaching.epochs}: L_g {loss:.5f}")
    return Neutralised(lora, before, judge(base, lora, judged, sampler, teaching.split))


def kl_to_normal(x: Tensor) -> Tensor:
    """D_KL(N(μ_c, σ_c²) ‖ N(0, 1)) = (μ_c² + σ_c² - 1 - ln σ_c²) / 2 in nats, its mean over the channels c of x.

    x: (N, C, h, w); μ_c and σ_c² are its moments over pictures and places. 0 when every channel has mean 0 and variance
    1.
    """
    variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    return (0.5 * (mean.square() + variance - 1 - variance.clamp_min(1e-12).log())).mean()


def sampler_of(base: Base, split: denoise.Split) -> Any:
    """DDIM, whose latents have the variance that N(0, I) is compared with; Euler's grow with its sigmas."""
    sampler = scheduler_named(base, "ddim")
    sampler.set_timesteps(split.steps, device=base.device)
    return sampler


def sample_lesson(
    base: Base, lora: LoRA, weighted: Sequence[tuple[LoRA, float]], prompts: Sequence[str], seeds: list[int],
    sampler: Any, split: denoise.Split,
) -> Lesson:  # fmt: skip
    """Sample the early steps of a picture per seed with `lora`, and let the clusters' adapters say their outputs."""
    shown = [prompts[i % len(prompts)] for i in range(len(seeds))]
    visited = _visited(base, lora, shown, seeds, sampler, split)[:-1]
    mean, square = torch.zeros_like(visited), 0.0
    for lora_k, w_k in weighted:
        with torch.no_grad(), adapters.adapted(base, lora_k):
            batch = denoise.encode_batch(base, shown, seeds)
            e_k = torch.stack([
                denoise.predict(base, x_t, t, batch, split.guidance).float()
                for x_t, t in zip(visited, sampler.timesteps, strict=False)
            ])  # fmt: skip
        mean += w_k * e_k
        square += w_k * float(e_k.square().mean())
    return Lesson(shown, seeds, visited, mean, max(0.0, square - float(mean.square().mean())))


def _visited(
    base: Base, lora: LoRA, prompts: list[str], seeds: list[int], sampler: Any, split: denoise.Split
) -> Tensor:
    """x_T and the latents after each early step, (T_early + 1, N, 4, h, w); the last is x_mid."""
    latents = [denoise.initial_latents(base, seeds) * sampler.init_noise_sigma]
    with torch.no_grad(), adapters.adapted(base, lora):
        batch = denoise.encode_batch(base, prompts, seeds)
        denoise.early(base, batch, split, scheduler=sampler, on_step=lambda _, x: latents.append(x))
    return torch.stack(latents)


def judge(base: Base, lora: LoRA, lesson: Lesson, sampler: Any, split: denoise.Split) -> Losses:
    """Return the losses of `lora`: L_neu of the x_mid that it samples itself, L_mix on the lesson's latents."""
    x_mid = _visited(base, lora, lesson.prompts, lesson.seeds, sampler, split)[-1]
    with torch.no_grad(), adapters.adapted(base, lora):
        batch = denoise.encode_batch(base, lesson.prompts, lesson.seeds)
        errors = [
            _error(denoise.predict(base, x_t, t, batch, split.guidance), mean)
            for x_t, t, mean in zip(lesson.visited, sampler.timesteps, lesson.mean, strict=False)
        ]
    return Losses(float(kl_to_normal(x_mid)), float(torch.stack(errors).mean()) + lesson.spread, lesson.spread)


def descend(base: Base, lora: LoRA, lesson: Lesson, sampler: Any, teaching: Teaching) -> tuple[LoRA, float]:
    """Return `lora` after `passes` over the lesson's steps, and the mean of L_g on the way.

    The gradient of L_neu goes through the last early step only, as DRaFT-1 does (Clark et al. 2023,
    arXiv 2309.17400): through all of them it would cost as many times the memory.
    """
    order = torch.Generator().manual_seed(lesson.seeds[0])
    last, losses = len(lesson.visited) - 1, []
    with adapters.adapted(base, lora):
        parameters = [p for part in adapters.unfrozen(base).values() for p in part]
        optimiser = torch.optim.AdamW(parameters, teaching.lr, weight_decay=0.0)
        for step in [s for _ in range(teaching.passes) for s in torch.randperm(last + 1, generator=order).tolist()]:
            batch = denoise.encode_batch(base, lesson.prompts, lesson.seeds)
            e = _output(base, lesson, batch, step, sampler, teaching.split)
            loss_mix = _error(e, lesson.mean[step]) + lesson.spread
            e_last = e if step == last else _output(base, lesson, batch, last, sampler, teaching.split)
            x_mid = sampler.step(e_last, sampler.timesteps[last], lesson.visited[last]).prev_sample
            loss = teaching.lambda_neu * kl_to_normal(x_mid) + teaching.lambda_mix * loss_mix
            if not torch.isfinite(loss):
                raise ValueError(f"L_g became {float(loss.detach())}; lower --lr ({teaching.lr:g})")
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
        return adapters.current(base), sum(losses) / len(losses)


def _output(base: Base, lesson: Lesson, batch: denoise.Batch, step: int, sampler: Any, split: denoise.Split) -> Tensor:
    return denoise.predict(base, lesson.visited[step], sampler.timesteps[step], batch, split.guidance)


def _error(e: Tensor, mean: Tensor) -> Tensor:
    return (e.float() - mean).square().mean()


def _seeds(teaching: Teaching, epoch: int) -> list[int]:
    """Seeds of an epoch's pictures; epoch 0 is for judging."""
    begin = (teaching.seed * (teaching.epochs + 1) + epoch) * teaching.pictures
    return list(range(begin, begin + teaching.pictures))
