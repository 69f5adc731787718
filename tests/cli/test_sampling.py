from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import tiny_base

from fedsd.base.training import Shared
from fedsd.cli.sampling import (
    LARGE,
    SMALL_ADAPTED,
    SMALL_ALONE,
    Finished,
    SamplerSettings,
    carried,
    pictures,
    usual_settings,
)
from fedsd.config import defaults, from_run_config
from fedsd.store import RunFolder


@pytest.mark.parametrize(("size", "settings"), [(64, SMALL_ADAPTED), (136, LARGE)])
def test_a_run_is_drawn_as_its_base_wants_it(tmp_path: Path, size: int, settings: SamplerSettings) -> None:
    base = replace(tiny_base(), size=size)
    run = Finished(RunFolder.create(tmp_path / "run"), from_run_config(defaults()), {}, {}, {})
    with carried(run, base, Shared()) as paint:
        drawn = paint(["a house"], steps=2)
    assert np.array_equal(drawn, pictures(settings.on(base), ["a house"], steps=2, guidance=settings.guidance))
    assert not np.array_equal(drawn, pictures(base, ["a house"], steps=2, guidance=SMALL_ALONE.guidance))


def test_a_small_base_wants_more_guidance_with_an_adapter_and_a_large_one_the_usual() -> None:
    small, large = replace(tiny_base(), size=64), replace(tiny_base(), size=136)
    assert usual_settings(small, adapted=False) == SMALL_ALONE and usual_settings(small) == SMALL_ADAPTED
    assert SMALL_ALONE.guidance < SMALL_ADAPTED.guidance < LARGE.guidance
    assert usual_settings(large) == usual_settings(large, adapted=False) == LARGE
