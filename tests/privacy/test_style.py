import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tiny_clip

from fedsd.base.load import Clip
from fedsd.privacy.style import image_embeddings, prompt_embedding, style_embedding


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (7, 3, 32, 32)).astype(np.float32)


def test_it_is_the_normalised_mean_of_normalised_embeddings(clip: Clip, pixels: np.ndarray) -> None:
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)
    with torch.no_grad():
        raw = clip.model.encode_image(((torch.from_numpy(pixels) + 1) / 2 - mean) / std).double().numpy()
    rows = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    z = rows.mean(axis=0)
    np.testing.assert_allclose(style_embedding(clip, pixels), z / np.linalg.norm(z), atol=1e-6)
    np.testing.assert_allclose(image_embeddings(clip, pixels).numpy(), rows, atol=1e-6)


def test_shape_type_and_norm(clip: Clip, pixels: np.ndarray) -> None:
    for z in (style_embedding(clip, pixels), prompt_embedding(clip, ["a cat", "a dog"])):
        assert z.shape == (24,) and z.dtype == np.float32
        assert np.linalg.norm(z) == pytest.approx(1, abs=1e-6)


def test_order_and_batches_do_not_matter(clip: Clip, pixels: np.ndarray) -> None:
    z = style_embedding(clip, pixels)
    for other in (style_embedding(clip, pixels[::-1].copy()), style_embedding(clip, pixels, batch=2)):
        np.testing.assert_allclose(other, z, atol=1e-6)
    captions = ["a cat", "two dogs", "the moon"]
    np.testing.assert_allclose(
        prompt_embedding(clip, captions[::-1], batch=2), prompt_embedding(clip, captions), atol=1e-6
    )


def test_repeating_the_pictures_changes_nothing(clip: Clip, pixels: np.ndarray) -> None:
    np.testing.assert_allclose(
        style_embedding(clip, np.concatenate([pixels, pixels])), style_embedding(clip, pixels), atol=1e-6
    )


def test_one_picture_counts_as_one_however_bright(clip: Clip) -> None:
    """Embeddings are normalised before the mean: n of one kind and 1 of another weigh n to 1."""
    kinds = np.stack([np.full((3, 32, 32), -1, np.float32), np.eye(32, dtype=np.float32)[None].repeat(3, 0)])
    rows = image_embeddings(clip, kinds).numpy()
    mixed = style_embedding(clip, kinds[[0, 0, 0, 1]])
    wanted = 3 * rows[0] + rows[1]
    np.testing.assert_allclose(mixed, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_prompts_are_encoded_by_the_text_tower(clip: Clip) -> None:
    captions = ["a cat", "two dogs"]
    with torch.no_grad():
        rows = F.normalize(clip.model.encode_text(clip.tokenizer(captions)), dim=-1).numpy()
    wanted = rows.mean(axis=0)
    np.testing.assert_allclose(prompt_embedding(clip, captions), wanted / np.linalg.norm(wanted), atol=1e-6)


def test_other_sizes_are_resized(clip: Clip, pixels: np.ndarray) -> None:
    large = np.kron(pixels, np.ones((1, 1, 4, 4), np.float32))
    assert style_embedding(clip, large) @ style_embedding(clip, pixels) > 0.99
    plain = np.full((1, 3, 50, 70), 0.25, np.float32)
    np.testing.assert_allclose(style_embedding(clip, plain), style_embedding(clip, plain[:, :, :32, :32]), atol=1e-5)
