from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from models import WIDTH, tiny_base

from fedsd.base.training import Pictures
from fedsd.privacy.private_token import NAME, private_token
from fedsd.privacy.words import registered
from fedsd.store import PrivateFolder

PICTURES = Pictures(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), ["a cat", "two dogs"])


def test_it_is_learnt_once_kept_and_never_to_be_sent(tmp_path: Path) -> None:
    private, base = PrivateFolder(tmp_path, "anna"), tiny_base()
    first = private_token(private, base, PICTURES, steps=2, batch=2, seed=0)
    assert first.name == "<user-s>" and first.vectors.shape == (1, WIDTH)
    assert registered(private) == ("<user-s>",)
    assert (private.path / f"{NAME}.safetensors").stat().st_mode & 0o077 == 0
    again = private_token(private, base, PICTURES, steps=2, batch=2, seed=1)
    np.testing.assert_array_equal(again.vectors, first.vectors)


def test_a_word_of_another_base_is_learnt_anew(tmp_path: Path) -> None:
    private, base = PrivateFolder(tmp_path, "anna"), tiny_base()
    first = private_token(private, base, PICTURES, steps=2, batch=2, seed=0)
    other = private_token(private, replace(base, sha="f" * 64), PICTURES, steps=2, batch=2, seed=1)
    assert np.abs(other.vectors - first.vectors).max() > 0
