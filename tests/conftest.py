"""One thread for each numerical library, set before any is imported: on two cores more threads are far slower."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest  # noqa: E402  (plugins import numpy)

WITH_RAY = {"test_simulation.py", "test_methods_in_rounds.py", "test_text_classification.py", "test_ray_serve.py"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep a file's tests on one worker, as they share fixtures, and all that start Ray on one, one after another."""
    group = "ray" if item.path.name in WITH_RAY else str(item.path)
    item.add_marker(pytest.mark.xdist_group(group))
