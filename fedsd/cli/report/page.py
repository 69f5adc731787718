"""report.html as a whole."""

from html import escape
from pathlib import Path

from fedsd.cli.report import sections
from fedsd.cli.report.model_card import model_card
from fedsd.cli.report.outcome import Outcome, read_outcome, version
from fedsd.cli.report.scores import evaluation
from fedsd.cli.report.style import CSS
from fedsd.store import write_file


def write_report(run_folder: Path) -> Path:
    """Write report.html and README.md of a run, finished or not, from the files in its folder; returns the page.

    Raises ValueError naming the file when one is damaged, or when it is no run folder.
    """
    run = read_outcome(run_folder)
    write_file(run.path / "README.md", model_card(run).encode())
    write_file(run.path / "report.html", report_page(run).encode())
    return run.path / "report.html"


def report_page(run: Outcome) -> str:
    """Return the whole page; every picture and style is inside it, and it runs no script."""
    parts = [sections.head(run), sections.last_grid(run), sections.clusters(run), evaluation(run.scores)]
    parts += [sections.plots(run), sections.rounds(run), sections.clients(run), sections.usage(run)]
    parts.append(sections.settings(run))
    ended = f", last event {run.history.latest:%Y-%m-%d %H:%M} UTC" if run.history.latest else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)} – fedsd</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(parts)}<footer>fedsd {version()}{ended}</footer></main></body></html>"
    )
