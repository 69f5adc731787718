import pytest
from drawable import drawable_run

from fedsd.store import RunFolder


@pytest.fixture(scope="session")
def drawable(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return drawable_run(tmp_path_factory.mktemp("drawable"))
