from pathlib import Path

from fedsd import server_app
from fedsd.config import defaults, from_run_config
from fedsd.store import RunFolder


def test_the_strategy_detects_poisoned_updates_where_the_run_config_says_so(tmp_path: Path) -> None:
    for wanted in (False, True):
        config = from_run_config(defaults() | {"strategy.detect": wanted})
        assert server_app.strategy_of(config, RunFolder(tmp_path)).settings.detect is wanted
