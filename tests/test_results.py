"""The pages of results say what the benchmarks wrote."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
LINES = [json.loads(line) for line in (RESULTS / "points.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_table_of_points_is_made_from_their_latest_lines(benchmarks):
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert benchmarks("overview").overview() in page, "run python benchmarks/overview.py"


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["id"])
def test_a_point_holds_where_its_value_meets_its_target(line, benchmarks):
    assert line["holds"] == benchmarks("points").holds(line["value"], line["target"])
    assert {"spread", "seeds", "command", "seconds", "machine", "commit", "date"} < line.keys()
    assert (ROOT / line["command"].split()[1]).is_file()


def test_every_picture_of_the_pages_is_there():
    for page in RESULTS.glob("*.md"):
        for part in page.read_text(encoding="utf-8").split("](")[1:]:
            target = part.split(")")[0].split("#")[0]
            assert not target or "://" in target or (RESULTS / target).exists(), f"{page.name}: {target}"
