import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsd.base.load import Clip
from fedsd.metrics.alignment import clip_score, names_right
from fedsd.metrics.features import extract, load_extractor

PROMPTS = ["a cat", "a house", "ein Baum", "木の絵", "a cat"]


def test_clip_score_is_a_hundred_cosines_clamped(clip: Clip, pixels: Tensor) -> None:
    image = F.normalize(extract(load_extractor("embedded", clip), pixels), dim=-1).numpy()
    text = clip.model.encode_text(clip.tokenizer(PROMPTS)).double().numpy()
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    wanted = np.maximum(100 * (image * text).sum(1), 0)
    mean, scores = clip_score(clip, pixels, PROMPTS, batch_size=2)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    assert mean == pytest.approx(wanted.mean(), rel=1e-5, abs=1e-5)


def test_clip_score_is_never_negative(clip: Clip, pixels: Tensor) -> None:
    cosines = [
        float(F.cosine_similarity(extract(load_extractor("embedded", clip), pixels[:1]), clip.model.encode_text(token)))
        for token in clip.tokenizer(PROMPTS).split(1)
    ]
    same = pixels[:1].expand(len(PROMPTS), -1, -1, -1)
    _, scores = clip_score(clip, same, PROMPTS)
    np.testing.assert_allclose(scores, [max(100 * c, 0) for c in cosines], atol=1e-4)
    assert min(scores) >= 0


def test_clip_score_needs_a_prompt_for_each_picture(clip: Clip, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match="got 5 pictures and 1 prompts; both numbers must be equal"):
        clip_score(clip, pixels, ["a cat"])
    with pytest.raises(ValueError, match="got 0 pictures and 0 prompts"):
        clip_score(clip, pixels[:0], [])


def test_names_right_counts_the_nearest_by_cosine() -> None:
    real = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    fake = torch.tensor([[9.0, 1.0], [1.0, 9.0], [2.0, 2.1], [5.0, 0.0]])
    names = ["cat", "Tree", "hot dog"]
    prompts = ["a picture of a cat", "a tree, sketch", "a hot dog", "a tree"]
    assert names_right(fake, prompts, real, names) == 0.75


def test_the_longest_whole_name_in_the_prompt_counts() -> None:
    names, real = ["dog", "hot dog", "cat"], torch.eye(3)
    assert names_right(torch.eye(3)[:1], ["a hot dog"], real, names) == 0
    assert names_right(torch.eye(3)[1:2], ["a Hot Dog!"], real, names) == 1
    with pytest.raises(ValueError, match="prompt 'a catalogue' holds none of the 3 names"):
        names_right(torch.eye(3)[2:], ["a catalogue"], real, names)


def test_names_right_needs_a_name_for_each_picture() -> None:
    with pytest.raises(ValueError, match="got 2 real pictures and 1 names"):
        names_right(torch.eye(2), ["cat", "cat"], torch.eye(2), ["cat"])
    with pytest.raises(ValueError, match="got 2 generated pictures and 1 prompts"):
        names_right(torch.eye(2), ["cat"], torch.eye(2), ["cat", "dog"])
