import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedsd.cli.plots import draw_plots
from fedsd.cli.report import write_report
from fedsd.store import RunFolder

VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Checks that every element is closed, and notes what the page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("report") / "run"))
    draw_plots(RunFolder(folder))
    return write_report(folder)


def test_the_page_is_whole_and_in_order(page: Path) -> None:
    seen = Balance()
    seen.feed(page.read_text())
    assert seen.open == []
    wanted = ["Style clusters", "Evaluation", "Plots", "Rounds", "Clients", "Use the adapters", "How it was run"]
    assert seen.headings == wanted


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    seen, text = Balance(), page.read_text()
    seen.feed(text)
    assert len(seen.links) == 8 and all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert not seen.tags & {"script", "link", "iframe", "object"}
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1] and "prefers-color-scheme: dark" in style[1]


def test_it_holds_no_path_of_this_machine(page: Path) -> None:
    assert str(page.parent.parent) not in page.read_text()
    assert str(page.parent.parent) not in (page.parent / "README.md").read_text()


def test_a_run_without_a_round_has_a_report(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new")
    folder.write("run.toml", "")
    seen = Balance()
    seen.feed(write_report(folder.path).read_text())
    assert seen.open == [] and seen.headings == []
    assert "no adapter yet" in (folder.path / "README.md").read_text()
    assert list(folder.path.glob(".*.tmp")) == []


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="so it is no run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
