import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from models import TOKENS, random_lora, tiny_base

from fedsd.base import adapters
from fedsd.base.denoise import (
    decode_latents,
    denoise,
    encode_pixels,
    encode_prompts,
    generate,
    initial_latents,
    tokenize,
)
from fedsd.base.load import Base

PROMPTS = ["a cat", "two dogs", "the moon"]


def latents(base: Base, prompts: list[str], seeds: list[int], guidance: float, steps: int = 4) -> torch.Tensor:
    with torch.no_grad():
        text = encode_prompts(base, prompts)
        empty = encode_prompts(base, [""] * len(prompts))
        return denoise(base, initial_latents(base, seeds), text, empty, steps=steps, guidance=guidance)


def test_same_seed_same_picture(base: Base) -> None:
    first = generate(base, PROMPTS, [1, 2, 3], steps=3)
    assert first.shape == (3, 16, 16, 3) and first.dtype == np.uint8
    assert (first == generate(base, PROMPTS, [1, 2, 3], steps=3)).all()
    other = generate(base, PROMPTS, [1, 2, 4], steps=3)
    assert (first[:2] == other[:2]).all() and (first[2] != other[2]).any()


def test_prompt_matters(base: Base) -> None:
    one, other = latents(base, ["a cat", "two dogs"], [1, 1], guidance=7.5)
    assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_picture_does_not_depend_on_its_batch(base: Base, guidance: float) -> None:
    together = latents(base, PROMPTS, [1, 2, 3], guidance)
    alone = torch.cat([latents(base, [prompt], [i + 1], guidance) for i, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    pictures = [generate(base, PROMPTS, [1, 2, 3], steps=3, batch=batch).astype(int) for batch in (1, 2, 16)]
    assert max(np.abs(pictures[0] - other).max() for other in pictures[1:]) <= 1


def test_guidance_of_one_leaves_the_empty_prompt_out(base: Base) -> None:
    seen: list[int] = []
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    text = encode_prompts(base, PROMPTS)
    nothing = torch.full_like(text, torch.nan)
    try:
        with torch.no_grad():
            x = denoise(base, initial_latents(base, [1, 2, 3]), text, nothing, steps=2, guidance=1)
            denoise(base, initial_latents(base, [1, 2, 3]), text, text, steps=2, guidance=1.5)
    finally:
        hook.remove()
    assert x.isfinite().all() and seen == [3, 3, 6, 6]


def test_guidance_is_the_extrapolation_from_empty_to_prompt(base: Base) -> None:
    """One DDIM step is linear in the predicted noise, and so is guidance: 3 = 1 + 2 (1 - 0)."""
    with torch.no_grad():
        text, empty = encode_prompts(base, ["a cat"]), encode_prompts(base, [""])
        x = initial_latents(base, [4])
        with_prompt, without = (denoise(base, x, s, s, steps=1, guidance=1) for s in (text, empty))
        guided = denoise(base, x, text, empty, steps=1, guidance=3)
    torch.testing.assert_close(guided, without + 3 * (with_prompt - without), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_stock_pipeline_gives_the_same(scheduler: type, prediction: str) -> None:
    shared = tiny_base("tiny", prediction)
    base = replace(shared, scheduler=scheduler.from_config(shared.scheduler.config))
    pipe = base.pipeline()
    pipe.scheduler = copy.deepcopy(base.scheduler)
    pipe.set_progress_bar_config(disable=True)
    with adapters.adapted(base, random_lora(base, 1)):
        ours = latents(base, PROMPTS, [1, 2, 3], guidance=3.0, steps=5)
        stock = pipe(
            PROMPTS, latents=initial_latents(base, [1, 2, 3]), num_inference_steps=5, guidance_scale=3.0,
            height=16, width=16, output_type="latent",
        ).images  # fmt: skip
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
    with torch.no_grad():
        stock_pixels = pipe.image_processor.postprocess(
            base.vae.decode(stock / base.vae.config.scaling_factor).sample, "np"
        )
    assert np.abs(decode_latents(base, ours) / 255 - stock_pixels).max() <= 1 / 255


def test_base_scheduler_is_not_touched(base: Base) -> None:
    before = copy.deepcopy(vars(base.scheduler))
    latents(base, ["a cat"], [0], guidance=1)
    assert str(before) == str(vars(base.scheduler))


def test_latents_are_the_scaled_mean(base: Base) -> None:
    pixels = torch.rand(5, 3, 16, 16) * 2 - 1
    found = encode_pixels(base, pixels, batch=2)
    assert found.shape == (5, 4, 8, 8) and found.is_contiguous() and not found.requires_grad
    torch.testing.assert_close(found, base.vae.encode(pixels).latent_dist.mean * 0.18215)
    decoded = decode_latents(base, found, batch=2)
    wanted = ((base.vae.decode(found / 0.18215).sample.clamp(-1, 1) + 1) * 127.5).round().byte()
    assert (decoded == wanted.permute(0, 2, 3, 1).numpy()).all()


def test_latents_of_the_small_autoencoder() -> None:
    base, pixels = tiny_base("tiny"), torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(encode_pixels(base, pixels), base.vae.encode(pixels).latents)


def test_start_is_standard_normal_and_of_the_size_asked_for(base: Base) -> None:
    x = initial_latents(base, list(range(200)))
    assert x.shape == (200, 4, 8, 8)
    assert abs(x.mean()) < 0.01 and x.std() == pytest.approx(1, abs=0.01)
    assert torch.equal(initial_latents(base, [7])[0], x[7])
    assert initial_latents(base, [7], size=32).shape == (1, 4, 16, 16)


def test_long_prompts_lose_their_end(base: Base) -> None:
    ids = tokenize(base, ["a " * 50, "a cat"])
    assert ids.shape == (2, TOKENS) and (ids[:, 0] == 49406).all() and (ids[:, -1] == 49407).all()
    assert encode_prompts(base, ["a " * 50]).shape == (1, TOKENS, 16)


def test_prompts_and_seeds_must_match(base: Base) -> None:
    with pytest.raises(ValueError, match="2 prompts need as many seeds, got 1"):
        generate(base, ["a", "b"], [1])
