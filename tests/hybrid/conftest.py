from collections.abc import Iterator
from pathlib import Path

import pytest
from ies import Served, serving, write_run
from models import tiny_base

from fedsd.base.load import Base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base as a folder that `fedsd serve` loads."""
    folder = tmp_path_factory.mktemp("base") / "small"
    tiny_base().pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(write_run(tmp_path_factory.mktemp("run") / "run")) as server:
        yield server


@pytest.fixture
def base() -> Base:
    """The device's base."""
    return tiny_base()
