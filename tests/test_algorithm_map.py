"""docs/algorithm1.md names a function for each of the 31 lines of Algorithm 1, and each of them exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| (\d+) \| .+ \| (fedsd/[\w/]+\.py):([\w.]+) \|$", re.MULTILINE)
ENTRIES = ROW.findall((ROOT / "docs" / "algorithm1.md").read_text(encoding="utf-8"))


def defined_in(tree: ast.Module | ast.ClassDef) -> dict[str, ast.stmt]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_line_is_in_the_table_once_and_in_order():
    assert [int(line) for line, _, _ in ENTRIES] == list(range(1, 32))


@pytest.mark.parametrize(("line", "file", "name"), ENTRIES)
def test_the_function_of_a_line_exists(line, file, name):
    found = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        names = defined_in(found)
        assert part in names, f"line {line}: {file} defines no {name}"
        found = names[part]
