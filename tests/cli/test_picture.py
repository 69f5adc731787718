"""`fedsd generate` without a server: the sampler that is asked for is the one that draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMScheduler
from models import random_lora
from PIL import Image
from typer.testing import CliRunner

from fedsd.base import denoise, load
from fedsd.cli.main import app
from fedsd.cli.picture import Picture, draw_pictures
from fedsd.store import export_diffusers


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


def test_an_adapter_on_the_embedded_base_is_drawn_as_its_run_draws_it(base_folder: Path, tmp_path: Path) -> None:
    export_diffusers(random_lora(load.load("tiny"), 2), tmp_path / "lora")
    wishes = {"tiny": ("--lora", str(tmp_path / "lora")), str(base_folder): ()}
    about = {}
    for name, more in wishes.items():
        out = tmp_path / "made.png"
        done = CliRunner().invoke(
            app, ["generate", "a house", "--base", name, "--steps", "2", "--out", str(out), *more]
        )
        assert done.exit_code == 0, done.output
        with Image.open(out) as made:
            about[name] = made.text["parameters"]
    load.load.cache_clear()  # stock diffusers has put its adapter into the cached base
    assert (
        "Sampler: DDPM, CFG scale: 2.5" in about["tiny"] and "Sampler: DDIM, CFG scale: 1.5" in about[str(base_folder)]
    )


def test_more_steps_than_the_sampler_can_take_are_refused(base_folder: Path, tmp_path: Path) -> None:
    wish = Picture("a house", None, str(base_folder), 1, 51, 2.0, 7, scheduler="lcm")
    with pytest.raises(ValueError, match="--steps is 51; lcm on this base takes at most 50; take fewer"):
        draw_pictures(wish, tmp_path / "a.png")
