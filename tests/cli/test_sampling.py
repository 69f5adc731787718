from pathlib import Path

import numpy as np

from fedsd.base import load
from fedsd.base.training import Shared
from fedsd.cli.sampling import Finished, carried, manner_of, pictures
from fedsd.config import defaults, from_run_config
from fedsd.store import RunFolder


def test_other_bases_than_the_embedded_one_are_drawn_with_the_usual_guidance(base_folder: Path, tmp_path: Path) -> None:
    config = from_run_config(defaults() | {"base.name": str(base_folder)})
    run = Finished(RunFolder.create(tmp_path / "run"), config, {}, {}, {})
    base = load.load(str(base_folder))
    with carried(run, base, Shared()) as paint:
        drawn = paint(["a house"], steps=2)
    assert np.array_equal(drawn, pictures(base, ["a house"], steps=2, guidance=7.5))
    embedded = manner_of("tiny")
    assert embedded.guidance < 7.5 and embedded.sampler == "ddpm"
    assert not np.array_equal(drawn, pictures(base, ["a house"], steps=2, guidance=embedded.guidance))
    assert not np.array_equal(drawn, pictures(embedded.of(base), ["a house"], steps=2, guidance=7.5))
