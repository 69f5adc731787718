from collections.abc import Iterator

import pytest
from models import tiny_base

from fedsd.base.load import Base, weights_sha


@pytest.fixture(params=["v_prediction"])
def base(request: pytest.FixtureRequest) -> Iterator[Base]:
    """A small base, and the check that training left its weights as they were."""
    shared = tiny_base(prediction=request.param)
    yield shared
    assert weights_sha(shared.unet, shared.text_encoder, shared.vae) == shared.sha
