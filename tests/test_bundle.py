"""The Flower app bundle (FAB) that `flwr run` sends: all code, nothing else, and nothing to install at run time."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the bundle that `flwr build` makes of the repository."""
    app = tmp_path_factory.mktemp("build") / "fedsd"  # flwr build allows no underscore in the folder's name
    left_out = shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", ".*_cache", ".hypothesis", "*.png")
    shutil.copytree(ROOT, app, ignore=left_out)
    env = {
        **os.environ,
        "FLWR_HOME": str(app.parent / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    flwr = Path(sys.executable).parent / "flwr"
    subprocess.run([flwr, "build"], cwd=app, env=env, check=True, capture_output=True)
    (file,) = app.glob("*.fab")
    assert file.stat().st_size < 2**20
    return zipfile.ZipFile(file).namelist()


def test_the_bundle_holds_all_code(bundle: list[str]) -> None:
    code = {file.relative_to(ROOT).as_posix() for file in (ROOT / "fedsd").rglob("*.py")}
    assert set(bundle) == code | {"pyproject.toml", "LICENSE", ".info/CONTENT"}


def test_the_bundle_holds_no_weights_and_no_tests(bundle: list[str]) -> None:
    # its copy of fedsd shadows the installed package, so fedsd_tiny must be found in the installation
    assert not [name for name in bundle if name.startswith(("fedsd_tiny", "tests", "training", "conf", "docker"))]


def named(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def test_flower_installs_nothing_at_run_time() -> None:
    project = PYPROJECT["project"]
    listed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    excluded = {named(name) for name in PYPROJECT["tool"]["uv"]["exclude-dependencies"]}
    assert {named(requirement) for requirement in listed} == excluded


def test_constraints_are_exact_versions_from_an_index() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    pinned = {named(line) for line in lines}
    assert {named(requirement) for requirement in PYPROJECT["project"]["dependencies"]} <= pinned
