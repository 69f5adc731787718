"""`fedsd generate` without a server: the sampler that is asked for is the one that draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMScheduler
from models import tiny_base
from PIL import Image

from fedsd.base import denoise, load
from fedsd.cli.picture import Picture, draw_pictures


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    tiny_base().pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_sampler_asked_for_draws_and_is_written_into_the_file(base_folder: Path, tmp_path: Path) -> None:
    wish = Picture("a house", None, str(base_folder), 1, 4, 2.0, 7, scheduler="ddpm")
    with Image.open(draw_pictures(wish, tmp_path / "a.png")) as made:
        assert "Sampler: DDPM" in made.text["parameters"]
        drawn = np.asarray(made)
    base = load.load(str(base_folder))
    ddpm = replace(base, scheduler=DDPMScheduler.from_config(base.scheduler.config))
    assert np.array_equal(drawn, denoise.generate(ddpm, ["a house"], [7], steps=4, guidance=2.0)[0])
    assert not np.array_equal(drawn, denoise.generate(base, ["a house"], [7], steps=4, guidance=2.0)[0])


def test_a_sampler_with_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="--scheduler must be one of ddim, ddpm, euler, lcm; got 'pndm'"):
        Picture("a house", None, "tiny", 1, 4, 2.0, 7, scheduler="pndm")


def test_more_steps_than_the_sampler_can_take_are_refused(base_folder: Path, tmp_path: Path) -> None:
    wish = Picture("a house", None, str(base_folder), 1, 51, 2.0, 7, scheduler="lcm")
    with pytest.raises(ValueError, match="--steps is 51; lcm on this base takes at most 50"):
        draw_pictures(wish, tmp_path / "a.png")
