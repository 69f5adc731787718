"""The diffusion loss on a frozen base, and the loop that descends it: the same for every method.

L_SD = E_{(p, x), eps, t} w(t) || eps - eps_theta(x_t, t, c(p)) ||^2
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsd.base.denoise import encode_prompts
from fedsd.base.load import PRECISIONS, Base
from fedsd.base.quantised import bits_of, no_gradients
from fedsd.lowrank import Array, LoRA

WARM_UP = 10  # steps


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a client trains on: scaled latents (N, 4, h, w) and a caption for each; ValueError otherwise."""

    latents: Tensor
    captions: list[str]

    def __post_init__(self) -> None:
        """Check that there is a caption for each picture, and a picture."""
        if len(self.latents) == 0 or len(self.latents) != len(self.captions):
            raise ValueError(
                f"{len(self.latents)} latents and {len(self.captions)} captions; each picture needs one, and one is "
                "the least"
            )


@dataclass(frozen=True)
class Descent:
    """steps: optimiser steps; min_snr_gamma: 0 for none; precision: of the computation; caption_dropout: a share.

    timesteps: from the first to before the second, what samples are noised to; None for all. rates: shares of the
    learning rate, at the first step and after the last.
    """

    steps: int
    batch_size: int
    min_snr_gamma: float
    precision: str
    caption_dropout: float
    timesteps: tuple[int, int] | None = None
    rates: tuple[float, float] = (1.0, 0.0)

    def share_of_rate(self, step: int) -> float:
        """Return the share of the learning rate at `step` of 0..steps: it warms up over ten steps and falls evenly.

        What a step of small batches gets wrong stays in the model unless later and smaller ones mend it.
        """
        first, last = self.rates
        return min((step + 1) / WARM_UP, first + (last - first) * step / self.steps)


@dataclass(frozen=True)
class Progress:
    """The mean loss over the first and the last fifth of the steps, and what they took."""

    loss_first: float
    loss_last: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True, eq=False)
class Shared:
    """What of a method travels: `lora` is combined as products B A, `arrays` (name -> float32) number by number."""

    lora: LoRA = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fit:
    """What training gave: what is shared, what stays on the node, and how it went."""

    shared: Shared
    own: Mapping[str, Array]
    progress: Progress


def descend(
    base: Base, pictures: Pictures, optimisers: Sequence[torch.optim.Optimizer], descent: Descent,
    generator: torch.Generator, *, text_trained: bool,
) -> Progress:  # fmt: skip
    """Take `descent.steps` steps on L_SD with whatever the base carries; the optimisers hold what is trained.

    Each of their groups names the setting of its rate as "setting", for the error. Rates follow `share_of_rate`, and
    gradients are clipped to norm 1 over all groups. text_trained: captions must be encoded anew at every step.
    Raises ValueError when the base is quantised or has fewer timesteps, and when the loss stops being finite.
    """
    if bits := bits_of(base):
        raise ValueError(no_gradients(bits))
    if descent.timesteps:
        check_timesteps(base, descent.timesteps, "train.timesteps")
    gamma, span = descent.min_snr_gamma, descent.timesteps
    begun, losses = time.perf_counter(), list[float]()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, descent.share_of_rate) for optimiser in optimisers]
    text = None if text_trained else encode_once(base, pictures.captions)
    scaler = torch.amp.GradScaler(base.device.type, enabled=descent.precision == "float16")
    for index in batches(len(pictures.latents), descent.batch_size, descent.steps, generator):
        dropped = torch.rand(len(index), generator=generator) < descent.caption_dropout
        shown = ["" if drop else pictures.captions[i] for i, drop in zip(index, dropped.tolist(), strict=True)]
        with autocast(base, descent.precision):
            states = encode_prompts(base, shown) if text is None else torch.stack([text[caption] for caption in shown])
            loss = diffusion_loss(base, pictures.latents[index], states, generator, gamma, span)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            rates = " and ".join(f"{group['setting']} ({group['initial_lr']:g})" for group in groups)
            raise ValueError(f"the loss became {losses[-1]} at step {len(losses)}; lower {rates}")
        for optimiser in optimisers:
            optimiser.zero_grad()
        scaler.scale(loss).backward()
        for optimiser in optimisers:
            scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            scaler.step(optimiser)
            schedule.step()
        scaler.update()
    seconds, fifth = time.perf_counter() - begun, max(1, len(losses) // 5)
    images = descent.steps * min(descent.batch_size, len(pictures.latents))
    return Progress(float(np.mean(losses[:fifth])), float(np.mean(losses[-fifth:])), seconds, images / seconds)


@dataclass(frozen=True, eq=False)
class Noised:
    """Noised latents x_t (N, 4, h, w) at timesteps t (N,), what the U-Net should predict of them, and weights (N,)."""

    x_t: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor

    def repeated(self, times: int) -> "Noised":
        """Return the same samples `times` times, one whole batch after another."""
        return Noised(
            self.x_t.repeat(times, 1, 1, 1), self.t.repeat(times), self.target.repeat(times, 1, 1, 1),
            self.weight.repeat(times),
        )  # fmt: skip


def diffusion_loss(
    base: Base, x0: Tensor, states: Tensor, generator: torch.Generator, gamma: float,
    span: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Return L_SD of a batch, x0 (N, 4, h, w) with text states (N, tokens, width), at uniform timesteps of `span`."""
    return errors(base, noised(base, x0, generator, gamma, span), states).mean()


def check_timesteps(base: Base, span: tuple[int, int], setting: str) -> None:
    """Raise ValueError, which names the setting, unless 0 <= first < second <= the base's number of timesteps."""
    (low, high), most = span, len(base.scheduler.alphas_cumprod)
    if not 0 <= low < high <= most:
        raise ValueError(f"{setting} must rise, from 0 or more to {most} or less; got {low} to {high}")


def noised(
    base: Base, x0: Tensor, generator: torch.Generator, gamma: float, span: tuple[int, int] | None = None
) -> Noised:
    """Draw timesteps and noise for x0 (N, 4, h, w); the target is the one that the base predicts (eps or v).

    gamma: min-SNR weights (Hang et al. 2023, arXiv 2303.09556, eq. 4), min(SNR, gamma) / SNR for eps and
    min(SNR, gamma) / (SNR + 1) for v; 0 weighs all timesteps alike. span: timesteps from the first to before the
    second; None for all.
    """
    abar = base.scheduler.alphas_cumprod
    low, high = span or (0, len(abar))
    t = torch.randint(low, high, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    signal, noise = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
    is_v = base.scheduler.config.prediction_type == "v_prediction"
    target = signal * eps - noise * x0 if is_v else eps
    snr = abar[t] / (1 - abar[t])
    weight = snr.clamp(max=gamma) / (snr + 1 if is_v else snr) if gamma else torch.ones(len(x0))
    return Noised(signal * x0 + noise * eps, t, target, weight)


def errors(base: Base, given: Noised, states: Tensor) -> Tensor:
    """Return w(t) || target - prediction ||² / (4 h w) of each sample, (N,); states: (N, tokens, width)."""
    dtype, device = base.unet.dtype, base.device
    output = base.unet(given.x_t.to(device, dtype), given.t.to(device), states.to(dtype)).sample
    error = F.mse_loss(output.float(), given.target.to(device), reduction="none").mean((1, 2, 3))
    return given.weight.to(device) * error


def batches(n: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` index tensors of min(size, n): shuffled passes over 0..n-1, one after another."""
    size, order = min(size, n), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        yield order[:size]
        order = order[size:]


def encode_once(base: Base, captions: list[str], batch: int = 64) -> dict[str, Tensor]:
    """Return the text states (tokens, width) of every different caption and of the empty one."""
    different = sorted({*captions, ""})
    with torch.no_grad():
        states = [encode_prompts(base, different[i : i + batch]) for i in range(0, len(different), batch)]
    return dict(zip(different, torch.cat(states), strict=True))


def autocast(base: Base, precision: str) -> torch.autocast | nullcontext[None]:
    """Within the block the base computes in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(base.device.type, dtype=PRECISIONS[precision])
