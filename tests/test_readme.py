"""The README's table of settings is that of pyproject.toml, its links lead somewhere, and its commands exist."""

import re
import tomllib
from pathlib import Path

import pytest
import typer

from fedsd.cli.main import app
from fedsd.config import flatten

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/deploy.md",
    "docs/lora-strategy.md",
    "examples/text-classification/README.md",
)
PAGES = [ROOT / name for name in NAMES]
README = PAGES[0].read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_table_of_settings_is_that_of_pyproject() -> None:
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| `(.*?)` \|", README, re.MULTILINE))
    shown = {key: tomllib.loads(f"v = {value}")["v"] for key, value in rows.items()}
    assert shown == flatten(tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]["config"])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_fedsd_command_and_option_exists(page: Path) -> None:
    root = typer.main.get_command(app)
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^fedsd (.+)$", "".join(blocks), re.MULTILINE):
        words = line.split("#")[0].split()
        command, context = root, root.make_context("fedsd", [], resilient_parsing=True)
        while hasattr(command, "get_command") and words:
            found = command.get_command(context, words.pop(0))
            assert found is not None, f"{page.name}: fedsd {line}"
            command = found
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options, f"{page.name}: fedsd {line}"
