from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import WIDTH, random_lora

from fedsd.base import adapters
from fedsd.base.denoise import encode_prompts
from fedsd.base.load import Base
from fedsd.base.quantised import quantised
from fedsd.base.tokens import Placeholder, Token, load_token, save_token, with_token, word_vectors
from fedsd.base.training import Descent, Fit, Pictures, Shared, diffusion_loss
from fedsd.methods.textual_inversion import Settings, fit

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]
DESCENT = Descent(steps=5, batch_size=4, min_snr_gamma=0.0, precision="float32", caption_dropout=0.5)
SETTINGS = Settings(DESCENT, Placeholder(), lr=0.1)


def pictures() -> Pictures:
    detail = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return Pictures(0.3 * detail + torch.tensor([1.0, -1.0, 0.5, 2.0]).view(1, 4, 1, 1), CAPTIONS)


def trained(
    base: Base, own: dict[str, np.ndarray] | None = None, *, steps: int = 5, seed: int = 0, **changes: object
) -> Fit:
    settings = replace(SETTINGS, descent=replace(DESCENT, steps=steps), **changes)
    return fit(base, pictures(), Shared(), own or {}, seed=seed, settings=settings)


def loss_with(base: Base, vectors: np.ndarray) -> float:
    """The mean loss over 128 fixed draws of timestep and noise."""
    carrying, shown = with_token(base, Token("<user-s>", vectors)), pictures()
    with torch.no_grad():
        states = encode_prompts(carrying, [f"{caption}, <user-s> style" for caption in shown.captions])
        repeated = shown.latents.repeat(32, 1, 1, 1)
        return float(diffusion_loss(base, repeated, states.repeat(32, 1, 1), torch.Generator().manual_seed(9), 0))


@pytest.fixture(autouse=True)
def base_stays(base: Base) -> Iterator[None]:
    words, table = len(base.tokenizer), base.text_encoder.get_input_embeddings()
    yield
    assert len(base.tokenizer) == words and base.text_encoder.get_input_embeddings() is table
    assert not any(p.requires_grad for m in (base.unet, base.text_encoder) for p in m.parameters())


@pytest.mark.parametrize("k", [1, 3])
def test_it_learns(base: Base, k: int) -> None:
    result = trained(base, steps=60, placeholder=Placeholder(vectors=k))
    assert result.own["token"].shape == (k, WIDTH) and result.own["token"].dtype == np.float32
    assert loss_with(base, result.own["token"]) < 0.995 * loss_with(base, word_vectors(base, "style", k))
    assert not result.shared.arrays and not result.shared.lora  # nothing leaves


def test_training_goes_on_where_it_stopped(base: Base) -> None:
    first = trained(base)
    again = trained(base, dict(first.own), steps=1, lr=1e-12)
    np.testing.assert_allclose(again.own["token"], first.own["token"], rtol=0, atol=1e-6)


def test_what_came_is_passed_on(base: Base) -> None:
    start = Shared(random_lora(base, 0))
    assert fit(base, pictures(), start, {}, seed=0, settings=SETTINGS).shared is start


def test_it_learns_beside_an_adapter(base: Base) -> None:
    plain = trained(base).own["token"]
    with adapters.adapted(base, random_lora(base, 0)):
        beside = trained(base).own["token"]
    assert np.abs(plain - beside).max() > 1e-3


def test_seed_decides_everything(base: Base) -> None:
    one, same, other = (trained(base, seed=seed).own["token"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_file_is_a_token(base: Base, tmp_path: Path) -> None:
    vectors = trained(base).own["token"]
    np.testing.assert_array_equal(load_token(save_token(Token("<user-s>", vectors), tmp_path)).vectors, vectors)


def test_bad_input_is_refused(base: Base) -> None:
    with pytest.raises(ValueError, match="cat is in the vocabulary already"):
        trained(base, placeholder=Placeholder(name="cat"))
    with pytest.raises(ValueError, match=r"token\.template must hold {caption} and {token}, got 'a'"):
        Placeholder(template="a")
    with pytest.raises(
        ValueError, match=r"longer than the 12 tokens of the text encoder and loses <user-s>; shorten it"
    ):
        trained(base, placeholder=Placeholder(template="{caption} and many more words than there is room for {token}"))
    with pytest.raises(ValueError, match=r"has 1 vectors, not 2; set token\.vectors as it was"):
        trained(base, {"token": np.zeros((1, WIDTH), np.float32)}, placeholder=Placeholder(vectors=2))
    with pytest.raises(ValueError, match="the base's words have 16; the token belongs to another base"):
        trained(base, {"token": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match="quantised to 8 bits gives no gradients"):
        trained(quantised(base, 8))
    with pytest.raises(ValueError, match=r"loss became (nan|inf) at step \d+; lower token\.lr"):
        trained(base, lr=1e38, steps=4)
