from pathlib import Path

import pytest

from fedsd.cli.run_config import read_config
from fedsd.config import defaults, from_run_config


def test_a_run_made_before_there_was_a_setting_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('"run.rounds" = 7\n[neutral]\nrank = 5\n')
    assert read_config(tmp_path) == from_run_config(defaults() | {"run.rounds": 7, "neutral.rank": 5})


def test_what_is_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="so it is no run folder; give the folder that `fedsd run` named"):
        read_config(tmp_path)
