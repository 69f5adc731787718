from collections.abc import Iterator

import pytest
from models import tiny_base

from fedsd.base.load import Base, load, weights_sha


@pytest.fixture
def base() -> Iterator[Base]:
    """A small base, and the check that a test left its weights and layers as they were."""
    shared = tiny_base()
    yield shared
    assert weights_sha(shared.unet, shared.text_encoder, shared.vae) == shared.sha


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """`load` keeps the last base; a test must not get another test's."""
    load.cache_clear()
    yield
    load.cache_clear()
