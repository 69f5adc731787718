import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from models import TOKENS, WIDTH, random_lora, tiny_base
from torch import Tensor

from fedsd.base import adapters
from fedsd.base.denoise import encode_prompts
from fedsd.base.load import Base
from fedsd.lowrank import Factor
from fedsd.methods import lora
from fedsd.methods.lora import Fit, Settings, diffusion_loss, fit

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]
SETTINGS = Settings(
    steps=3, batch_size=4, lr=1e-2, text_lr=1e-2, min_snr_gamma=0.0, precision="float32", caption_dropout=0.1,
    text_encoder=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Four pictures, each of a colour of its own with little detail."""
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return 0.3 * noise + 3 * noise.mean((2, 3), keepdim=True)


def trained(
    base: Base, latents: Tensor, *, start: dict[str, Factor] | None = None, seed: int = 0, **changes: object
) -> Fit:
    settings = replace(SETTINGS, **changes)
    return fit(base, latents, CAPTIONS[: len(latents)], start or {}, rank=4, seed=seed, settings=settings)


def loss_on(base: Base, latents: Tensor, adapter: dict[str, Factor]) -> float:
    """The mean loss over 256 fixed draws of timestep and noise."""
    with adapters.adapted(base, adapter), torch.no_grad():
        states = encode_prompts(base, CAPTIONS).repeat(64, 1, 1)
        return float(diffusion_loss(base, latents.repeat(64, 1, 1, 1), states, torch.Generator().manual_seed(9), 0))


@pytest.mark.parametrize("base", ["epsilon", "v_prediction"], indirect=True)
def test_it_learns_four_pictures(base: Base, latents: Tensor) -> None:
    result = trained(base, latents, steps=50, batch_size=8, caption_dropout=0.0)
    assert loss_on(base, latents, result.lora) < 0.9 * loss_on(base, latents, {})
    assert result.loss_last < 0.9 * result.loss_first
    assert result.lora.keys() == adapters.target_shapes(base).keys()
    assert all(factor.rank == 4 and factor.B.any() for factor in result.lora.values())


def test_both_factors_move_and_b_starts_at_zero(base: Base, latents: Tensor) -> None:
    with adapters.trainable(base, {}, 4, 0, text_encoder=True):
        start = adapters.current(base)
    first, third = (trained(base, latents, steps=steps).lora for steps in (1, 3))
    for layer, factor in start.items():
        assert not factor.B.any()
        np.testing.assert_array_equal(first[layer].A, factor.A)  # with B = 0 the first gradient of A is 0
        assert first[layer].B.any() and not np.array_equal(third[layer].A, factor.A)


def test_warmup_and_clipping_bound_the_first_step(base: Base, latents: Tensor) -> None:
    """Adam's first step is at most its rate, and the warm-up's first rate is a tenth."""
    first = trained(base, latents, steps=1, lr=1e-2, text_lr=1e-3).lora
    largest = {
        name: max(np.abs(f.B).max() for k, f in first.items() if k.startswith(name)) for name in ("unet", "text")
    }
    assert largest == pytest.approx({"unet": 1e-3, "text": 1e-4}, rel=1e-2)


def test_seed_decides_everything(base: Base, latents: Tensor) -> None:
    one, same, other = (trained(base, latents, seed=seed) for seed in (5, 5, 6))
    assert (one.loss_first, one.loss_last) == (same.loss_first, same.loss_last) != (other.loss_first, other.loss_last)
    for layer in one.lora:
        np.testing.assert_array_equal(one.lora[layer].B, same.lora[layer].B)
        np.testing.assert_array_equal(one.lora[layer].A, same.lora[layer].A)
        assert not np.array_equal(one.lora[layer].B, other.lora[layer].B)


def test_warm_start_goes_on_from_the_adapter(base: Base, latents: Tensor) -> None:
    start = random_lora(base, 1)
    kept = trained(base, latents, start=start, steps=1, lr=1e-9, text_lr=1e-9).lora
    for layer, factor in start.items():
        np.testing.assert_allclose(kept[layer].B, factor.B, atol=1e-6)
        np.testing.assert_allclose(kept[layer].A, factor.A, atol=1e-6)
    first = trained(base, latents, steps=50, batch_size=8)
    assert trained(base, latents, start=first.lora, steps=10, batch_size=8).loss_first < first.loss_first


def test_frozen_text_encoder_is_asked_once_and_not_adapted(base: Base, latents: Tensor) -> None:
    calls: list[int] = []
    hook = base.text_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    try:
        frozen = trained(base, latents, text_encoder=False)
        trained(base, latents, text_encoder=True)
    finally:
        hook.remove()
    assert calls == [5, 4, 4, 4]  # four captions and the empty one once, then each batch
    assert all(layer.startswith("unet.") for layer in frozen.lora)


def test_text_states_of_a_frozen_encoder_are_those_of_its_captions(base: Base) -> None:
    states = lora._encode_once(base, [*CAPTIONS, "a cat"], batch=2)
    assert set(states) == {*CAPTIONS, ""}
    for caption, state in states.items():
        torch.testing.assert_close(state, encode_prompts(base, [caption])[0], rtol=0, atol=1e-5)


def test_dropped_captions_are_empty_ones(base: Base, latents: Tensor) -> None:
    dropped = trained(base, latents, caption_dropout=1.0)
    empty = fit(base, latents, [""] * 4, {}, rank=4, seed=0, settings=replace(SETTINGS, caption_dropout=0.0))
    kept = trained(base, latents, caption_dropout=0.0)
    assert dropped.loss_last == empty.loss_last != kept.loss_last


def test_losses_are_means_of_the_first_and_last_fifth(
    base: Base, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def listening(*given: object) -> Tensor:
        loss = diffusion_loss(*given)  # type: ignore[arg-type]
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(lora, "diffusion_loss", listening)
    result = trained(base, latents, steps=10)
    assert (result.loss_first, result.loss_last) == pytest.approx((sum(seen[:2]) / 2, sum(seen[-2:]) / 2))
    assert result.images_per_second == pytest.approx(40 / result.seconds)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_float32_factors(base: Base, latents: Tensor, precision: str) -> None:
    result, wanted = trained(base, latents, precision=precision), trained(base, latents)
    assert result.loss_first == pytest.approx(wanted.loss_first, rel=0.03)
    assert result.loss_first != wanted.loss_first
    assert all(f.B.dtype == f.A.dtype == np.float32 and np.isfinite(f.B).all() for f in result.lora.values())


def test_loss_that_is_not_finite_is_an_error_with_a_remedy(base: Base, latents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the loss became (nan|inf) at step \d; lower train\.lr \(1e\+30\)"):
        trained(base, latents, steps=5, lr=1e30)
    assert adapters.current(base) == {}


@pytest.mark.parametrize(("pictures", "captions"), [(4, 3), (3, 4), (0, 0)])
def test_each_picture_needs_a_caption(base: Base, latents: Tensor, pictures: int, captions: int) -> None:
    with pytest.raises(ValueError, match=f"{pictures} latents and {captions} captions; each picture needs one"):
        fit(base, latents[:pictures], CAPTIONS[:captions], {}, rank=4, seed=0, settings=SETTINGS)


def test_rank_that_does_not_fit_is_refused(base: Base, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="LoRA rank 17 does not fit"):
        fit(base, latents, CAPTIONS, {}, rank=17, seed=0, settings=SETTINGS)


@pytest.mark.parametrize(("n", "size", "steps"), [(20, 16, 10), (4, 16, 3), (5, 2, 10), (16, 16, 2), (1, 4, 3)])
def test_batches_cover_all_pictures_in_every_pass(n: int, size: int, steps: int) -> None:
    batches = list(lora._batches(n, size, steps, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [min(size, n)] * steps
    shown = torch.cat(batches)
    passes = [part.tolist() for part in shown.split(n) if len(part) == n]
    assert len(passes) == steps * min(size, n) // n and all(sorted(part) == list(range(n)) for part in passes)
    assert n == 1 or len({tuple(part) for part in passes}) > 1  # shuffled anew


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
