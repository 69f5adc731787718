"""Cutting a run in two leaves no trace: the split of `fedsd.base.denoise`."""

from dataclasses import replace

import pytest
import torch
from models import random_lora

from fedsd.base import adapters
from fedsd.base.denoise import Batch, Split, denoise, early, encode_batch, initial_latents, late
from fedsd.base.load import Base
from fedsd.base.schedulers import WITHOUT_MEMORY, scheduler_named

PROMPTS, SEEDS = ["a cat", "two dogs"], [3, 2**40]
STEPS = 20


def with_scheduler(base: Base, name: str) -> Base:
    return replace(base, scheduler=scheduler_named(base, name))


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_a_cut_leaves_no_trace(base: Base, name: str) -> None:
    base = with_scheduler(base, name)
    with adapters.adapted(base, random_lora(base, 1)):
        batch = encode_batch(base, PROMPTS, SEEDS)
        x_T = initial_latents(base, SEEDS)
        whole = denoise(base, x_T, batch.text, batch.empty, steps=STEPS, guidance=3, seeds=SEEDS)
        for server_steps in (0, 2, 4, 6, 8, 10, 19, 20):
            split = Split(STEPS, server_steps, 3)
            assert torch.equal(late(base, early(base, batch, split), batch, split), whole), server_steps
    assert whole.isfinite().all()


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_a_cut_at_another_step_is_seen(base: Base, name: str) -> None:
    base = with_scheduler(base, name)
    batch = encode_batch(base, PROMPTS, SEEDS)
    x_mid = early(base, batch, Split(STEPS, 6, 3))
    right, wrong = (late(base, x_mid, batch, Split(STEPS, cut, 3)) for cut in (6, 7))
    assert (right - wrong).abs().max() > 1e-3


def test_noise_is_of_the_picture_and_not_of_its_batch(base: Base) -> None:
    base, split = with_scheduler(base, "ddpm"), Split(6, 3, 1)
    together = early(base, encode_batch(base, PROMPTS, SEEDS), split)
    alone = early(base, encode_batch(base, PROMPTS[1:], SEEDS[1:]), split)
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)
    other = early(base, encode_batch(base, PROMPTS[1:], [4]), split)
    assert (alone - other).abs().max() > 0.1


def test_each_half_has_its_own_adapter_scale_and_prompt(base: Base) -> None:
    """Fig. 5: the neutral adapter at mixLoras on one side, the personal one at the local scale on the other."""
    split, neutral, personal = Split(8, 4, 3), random_lora(base, 1), random_lora(base, 2)

    def drawn(mix: float, local: float, prompt: str) -> torch.Tensor:
        with adapters.adapted(base, neutral):
            adapters.set_scale(base, mix)
            x_mid = early(base, encode_batch(base, ["a dog"], [1]), split)
        with adapters.adapted(base, personal):
            adapters.set_scale(base, local)
            return late(base, x_mid, encode_batch(base, [prompt], [1]), split)

    first = drawn(1, 0.95, "a dog")
    assert torch.equal(first, drawn(1, 0.95, "a dog"))
    for other in (drawn(0.7, 0.95, "a dog"), drawn(1, 0.75, "a dog"), drawn(1, 0.95, "a cat")):
        assert (first - other).abs().max() > 1e-3
    plain = encode_batch(base, ["a dog"], [1])
    torch.testing.assert_close(drawn(0, 0, "a dog"), late(base, early(base, plain, split), plain, split))


def test_scale_is_that_of_the_product(base: Base) -> None:
    lora, x = random_lora(base, 1), torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    layer = "text_encoder.encoder.layers.0.self_attn.q_proj"
    module = base.text_encoder.get_submodule(layer.removeprefix("text_encoder."))
    before = module(x)
    with adapters.adapted(base, {layer: lora[layer]}):
        adapters.set_scale(base, 0.7)
        after = base.text_encoder.get_submodule(layer.removeprefix("text_encoder."))(x)
    added = torch.from_numpy(lora[layer].B @ lora[layer].A)
    torch.testing.assert_close(after - before, 0.7 * x @ added.T, rtol=1e-4, atol=1e-5)


def test_text_and_its_embeddings_give_the_same(base: Base) -> None:
    batch, split = encode_batch(base, PROMPTS, SEEDS, "ugly"), Split(4, 2, 3)
    sent = Batch(batch.text.clone(), batch.empty.clone(), SEEDS)
    assert torch.equal(early(base, sent, split), early(base, batch, split))
    plain = early(base, encode_batch(base, PROMPTS, SEEDS), split)
    assert (early(base, batch, split) - plain).abs().max() > 1e-4  # the negative prompt counts


def test_every_step_is_told_and_can_end_the_run(base: Base) -> None:
    told: list[int] = []

    def stop_after_two(step: int, x: torch.Tensor) -> None:
        assert x.shape == (2, 4, 8, 8)
        told.append(step)
        if step == 4:
            raise TimeoutError("enough")

    batch = encode_batch(base, PROMPTS, SEEDS)
    x_mid = early(base, batch, Split(8, 3, 1), on_step=stop_after_two)
    with pytest.raises(TimeoutError, match="enough"):
        late(base, x_mid, batch, Split(8, 3, 1), on_step=stop_after_two)
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("server_steps", [-1, 9])
def test_the_cut_lies_within_the_run(server_steps: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to the 8 steps; got {server_steps}"):
        Split(8, server_steps, 1)


def test_the_early_steps_need_seeds(base: Base) -> None:
    batch = encode_batch(base, PROMPTS, SEEDS)
    with pytest.raises(ValueError, match="need the seeds"):
        early(base, Batch(batch.text, batch.empty, None), Split(4, 2, 1))
