"""`fedsd adapt`: a newcomer's style is compared with the run's as the run's own were sent."""

from pathlib import Path

import numpy as np
import pytest

from fedsd.cli.adapt import as_compared
from fedsd.config import defaults, from_run_config
from fedsd.privacy import key


def test_a_newcomer_is_turned_by_the_key_of_the_run(tmp_path: Path) -> None:
    turned, plain = (from_run_config(defaults() | {"style.key": kind}) for kind in ("turn", "none"))
    z = np.eye(8, dtype=np.float32)[0]
    sent = key.turn(z, key.simulated_key(tmp_path))  # by a device of the run with pictures of the same style
    assert as_compared(z, turned, tmp_path) @ sent == pytest.approx(1, abs=1e-6)
    assert abs(z @ sent) < 0.99
    np.testing.assert_array_equal(as_compared(z, plain, tmp_path), z)


def test_a_newcomer_without_the_key_is_told_so(tmp_path: Path) -> None:
    turned = from_run_config(defaults() | {"style.key": "turn"})
    with pytest.raises(ValueError, match=r"holds no federation\.key; set --private-dir .* or choose .* --adapter"):
        as_compared(np.ones(8, np.float32), turned, tmp_path)
    assert not list(tmp_path.iterdir())  # a key of its own would turn it elsewhere
