from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from models import random_lora
from torch import Tensor

from fedsd.base import adapters, training
from fedsd.base.denoise import encode_prompts
from fedsd.base.load import Base
from fedsd.base.training import Descent, Noised, Pictures, Progress, Shared, diffusion_loss, errors
from fedsd.lowrank import LoRA
from fedsd.methods.lora import Settings, fit

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]
DESCENT = Descent(steps=3, batch_size=4, min_snr_gamma=0.0, precision="float32", caption_dropout=0.1)
SETTINGS = Settings(DESCENT, lr=1e-2, text_lr=1e-2, text_encoder=True)


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Four pictures, each of a colour of its own with little detail."""
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return 0.3 * noise + 3 * noise.mean((2, 3), keepdim=True)


@dataclass(frozen=True)
class Result(Progress):
    """What training gave: the adapter, and how it went."""

    lora: LoRA


def trained(
    base: Base, latents: Tensor, *, start: LoRA | None = None, captions: list[str] = CAPTIONS, seed: int = 0,
    **changes: object,
) -> Result:  # fmt: skip
    """Train with the changed fields of the descent and of the settings."""
    here = {field.name for field in fields(Descent)}
    descent = replace(DESCENT, **{name: value for name, value in changes.items() if name in here})
    settings = replace(SETTINGS, descent=descent, **{n: v for n, v in changes.items() if n not in here})
    found = fit(base, Pictures(latents, captions), Shared(start or {}), {}, seed=seed, settings=settings)
    assert not found.shared.arrays and not found.own
    return Result(**vars(found.progress), lora=found.shared.lora)


def loss_on(base: Base, latents: Tensor, adapter: LoRA) -> float:
    """The mean loss over 256 fixed draws of timestep and noise."""
    with adapters.adapted(base, adapter), torch.no_grad():
        states = encode_prompts(base, CAPTIONS).repeat(64, 1, 1)
        return float(diffusion_loss(base, latents.repeat(64, 1, 1, 1), states, torch.Generator().manual_seed(9), 0))


@pytest.mark.parametrize("base", ["epsilon", "v_prediction"], indirect=True)
def test_it_learns_four_pictures(base: Base, latents: Tensor) -> None:
    result = trained(base, latents, steps=100, batch_size=8, caption_dropout=0.0)
    assert loss_on(base, latents, result.lora) < 0.9 * loss_on(base, latents, {})
    assert result.loss_last < 0.9 * result.loss_first
    assert result.lora.keys() == adapters.target_shapes(base).keys()
    assert all(factor.rank == 4 and factor.B.any() for factor in result.lora.values())


def test_residual_blocks_are_trained_where_asked_for(base: Base, latents: Tensor) -> None:
    result = trained(base, latents, steps=2, convolutions=True)
    shapes = adapters.target_shapes(base, convolutions=True)
    assert {layer: factor.shape for layer, factor in result.lora.items()} == shapes
    kernels = [layer for layer in shapes if layer.endswith(adapters.CONVOLUTIONS)]
    assert "unet.down_blocks.0.resnets.0.conv1" in kernels and "unet.conv_in" not in shapes
    assert "unet.down_blocks.0.resnets.0.time_emb_proj" in shapes
    assert all(factor.B.any() for factor in result.lora.values())


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


def test_dropped_captions_are_empty_ones(base: Base, latents: Tensor) -> None:
    dropped = trained(base, latents, caption_dropout=1.0)
    empty = trained(base, latents, captions=[""] * 4, caption_dropout=0.0)
    kept = trained(base, latents, caption_dropout=0.0)
    assert dropped.loss_last == empty.loss_last != kept.loss_last


def test_pictures_are_noised_to_the_timesteps_asked_for(
    base: Base, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def listening(base: Base, given: Noised, states: Tensor) -> Tensor:
        seen.extend(given.t.tolist())
        return errors(base, given, states)

    monkeypatch.setattr(training, "errors", listening)
    trained(base, latents, steps=60, timesteps=(690, 700))
    assert set(seen) == set(range(690, 700))
    with pytest.raises(ValueError, match=r"train\.timesteps must rise, from 0 or more to 1000 or less; got 0 to 1001"):
        trained(base, latents, timesteps=(0, 1001))


def test_losses_are_means_of_the_first_and_last_fifth(
    base: Base, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def listening(*given: object) -> Tensor:
        loss = diffusion_loss(*given)  # type: ignore[arg-type]
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(training, "diffusion_loss", listening)
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
        trained(base, latents[:pictures], captions=CAPTIONS[:captions])


def test_rank_that_does_not_fit_is_refused(base: Base, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="LoRA rank 17 does not fit"):
        trained(base, latents, rank=17)


def test_b_learns_as_many_times_as_fast_as_a_as_asked(base: Base, latents: Tensor) -> None:
    plain = trained(base, latents, steps=1, lr=1e-4).lora
    fast = trained(base, latents, steps=1, lr=1e-4, ratio=8.0).lora
    for layer in plain:  # B begins at 0, and AdamW's first step does not know the size of the gradient
        np.testing.assert_allclose(fast[layer].B, 8 * plain[layer].B, rtol=1e-3, atol=1e-8)
        np.testing.assert_array_equal(fast[layer].A, plain[layer].A)
