import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from models import TOKENS, WIDTH, tiny_base
from torch import Tensor

from fedsd.base.denoise import encode_prompts
from fedsd.base.load import Base
from fedsd.base.training import Descent, Pictures, batches, descend, diffusion_loss, encode_once

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]


def test_text_states_of_a_frozen_encoder_are_those_of_its_captions(base: Base) -> None:
    states = encode_once(base, [*CAPTIONS, "a cat"], batch=2)
    assert set(states) == {*CAPTIONS, ""}
    for caption, state in states.items():
        torch.testing.assert_close(state, encode_prompts(base, [caption])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "size", "steps"), [(20, 16, 10), (4, 16, 3), (5, 2, 10), (16, 16, 2), (1, 4, 3)])
def test_batches_cover_all_pictures_in_every_pass(n: int, size: int, steps: int) -> None:
    given = list(batches(n, size, steps, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in given] == [min(size, n)] * steps
    shown = torch.cat(given)
    passes = [part.tolist() for part in shown.split(n) if len(part) == n]
    assert len(passes) == steps * min(size, n) // n and all(sorted(part) == list(range(n)) for part in passes)
    assert n == 1 or len({tuple(part) for part in passes}) > 1  # shuffled anew


class Recording(torch.optim.SGD):
    """Keeps the rates that its steps took."""

    def __init__(self, rate: float) -> None:
        super().__init__([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate, "setting": "train.lr"}])
        self.rates: list[float] = []

    def step(self, closure: object = None) -> None:
        self.rates.append(self.param_groups[0]["lr"])


@pytest.mark.parametrize(("first", "last"), [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0)])
def test_rates_warm_up_and_fall(base: Base, first: float, last: float) -> None:
    """After ten steps at most the rate is on the line from one share of it to the other."""
    optimisers = Recording(1.0), Recording(0.1)
    pictures = Pictures(torch.zeros(1, 4, 8, 8), ["a cat"])
    descent = Descent(40, 1, 0.0, "float32", 0.0, rates=(first, last))
    trainable = next(base.unet.parameters())
    trainable.requires_grad_(True)
    try:
        descend(base, pictures, optimisers, descent, torch.Generator(), text_trained=False)
    finally:
        trainable.requires_grad_(False)
        trainable.grad = None
    rates = optimisers[0].rates
    line = [first + (last - first) * step / 40 for step in range(40)]
    assert rates == pytest.approx([min(rate, (step + 1) / 10) for step, rate in enumerate(line)])
    assert rates[0] == pytest.approx(0.1) and rates[9:] == pytest.approx(line[9:])
    assert optimisers[1].rates == pytest.approx([rate / 10 for rate in rates])


def one_timestep(prediction: str, beta: float) -> Base:
    """A base whose only timestep has abar = 1 - beta, and whose U-Net predicts 0."""
    shared = tiny_base()
    unet = copy.deepcopy(shared.unet)
    for parameter in unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    scheduler = DDIMScheduler(num_train_timesteps=1, trained_betas=[beta], prediction_type=prediction)
    return replace(shared, unet=unet, scheduler=scheduler)


def loss(base: Base, x0: Tensor, gamma: float) -> float:
    states = torch.zeros(len(x0), TOKENS, WIDTH)
    return float(diffusion_loss(base, x0, states, torch.Generator().manual_seed(1), gamma))


@pytest.mark.parametrize(
    ("prediction", "gamma", "weight"),
    [  # abar = 0.8, so SNR = 0.8 / 0.2 = 4
        ("epsilon", 5.0, 1.0), ("epsilon", 4.0, 1.0), ("epsilon", 1.0, 0.25), ("epsilon", 0.5, 0.125),
        ("v_prediction", 5.0, 0.8), ("v_prediction", 1.0, 0.2), ("v_prediction", 0.5, 0.1),
    ],
)  # fmt: skip
def test_min_snr_weights(prediction: str, gamma: float, weight: float) -> None:
    base, x0 = one_timestep(prediction, 0.2), torch.full((3, 4, 8, 8), 0.5)
    assert loss(base, x0, gamma) == pytest.approx(weight * loss(base, x0, 0.0), rel=1e-5)


def test_targets_are_noise_or_velocity() -> None:
    """With a prediction of 0 the loss is the target's mean square: E eps² = 1, and abar E eps² + (1 - abar) x0²."""
    x0 = torch.full((64, 4, 8, 8), 2.0)
    assert loss(one_timestep("epsilon", 0.2), x0, 0.0) == pytest.approx(1, abs=0.03)
    assert loss(one_timestep("v_prediction", 0.2), x0, 0.0) == pytest.approx(0.8 * 1 + 0.2 * 4, abs=0.03)


def test_input_is_the_noised_picture(base: Base) -> None:
    """The U-Net sees sqrt(abar) x0 + sqrt(1 - abar) eps: at abar 0.36 a picture of 10s has mean 6, deviation 0.8."""
    seen: list[Tensor] = []
    single = replace(base, scheduler=one_timestep("epsilon", 0.64).scheduler)
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        loss(single, torch.full((64, 4, 8, 8), 10.0), 0.0)
    finally:
        hook.remove()
    assert float(seen[0].mean()) == pytest.approx(6, abs=0.02) and float(seen[0].std()) == pytest.approx(0.8, abs=0.02)
