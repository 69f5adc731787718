"""All that a run folder holds about how a run went, read for the report and the model card."""

import csv
import json
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fedsd.cli.grids import round_grids
from fedsd.cli.history import History, natural, read_history
from fedsd.config import flatten
from fedsd.store import DIFFUSERS_FILE, RunFolder

METHOD_ORDER = ("base", "local", "fedavg", "fedgeomed", "flora", "cluster", "mix", "neutral")
PLOT_ORDER = ("energy", "clusters", "ranks_beta", "loss", "traffic")


@dataclass(frozen=True)
class Scores:
    """evaluation.json. cells: method -> style -> {"kid", "fid", "clip_score", "n", ...}; extractor: of KID and FID."""

    extractor: str
    cells: dict[str, dict[str, dict[str, float]]]

    @property
    def methods(self) -> list[str]:
        """The methods, baselines first, others last in the order of the file."""
        place = {method: index for index, method in enumerate(METHOD_ORDER)}
        return sorted(self.cells, key=lambda method: place.get(method, len(place)))

    @property
    def styles(self) -> list[str]:
        """The styles, sorted."""
        return sorted({style for found in self.cells.values() for style in found})

    def column(self, metric: str, style: str) -> dict[str, float]:
        """Method -> score in one style, of the methods that have one."""
        return {m: found[style][metric] for m, found in self.cells.items() if metric in found.get(style, {})}

    def mean(self, metric: str) -> dict[str, float]:
        """Method -> mean over the styles, of the methods that have every style."""
        rows = {m: [self.column(metric, style).get(m) for style in self.styles] for m in self.cells}
        return {m: sum(filter(None, row)) / len(row) for m, row in rows.items() if None not in row}

    def best(self, metric: str, column: dict[str, float]) -> set[str]:
        """The methods with the best score of a column: the highest CLIP score, the lowest KID or FID."""
        pick = max if metric == "clip_score" else min
        return {method for method, value in column.items() if value == pick(column.values())}


@dataclass(frozen=True)
class Outcome:
    """A run folder, read. state: state.json of the last complete round, None before the first.

    settings: run.toml, flat; grids: by round; plots: by name, the most telling first; loras: names of the adapters in
    loras/; metrics: rows of metrics.csv, its header first.
    """

    path: Path
    history: History
    settings: dict[str, Any]
    env: dict[str, Any]
    state: dict[str, Any] | None
    scores: Scores | None
    grids: dict[int, Path]
    plots: dict[str, Path]
    loras: list[str]
    metrics: list[list[str]]

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.history.run or self.path.name

    @property
    def base(self) -> str:
        """What the base was called in the run config."""
        return str(self.settings.get("base.name", "tiny"))


def read_outcome(path: Path) -> Outcome:
    """Return what is in the run folder `path`; what the run did not write is left empty.

    Raises ValueError naming the file when one is damaged, or when `path` is no run folder.
    """
    folder = RunFolder(path)
    if not (folder.path / "events.jsonl").exists() and not (folder.path / "run.toml").exists():
        raise ValueError(f"{folder.path} holds neither run.toml nor events.jsonl, so it is no run folder")
    plots = {file.stem: file for file in sorted((folder.path / "plots").glob("*.png"))}
    shown = [name for name in PLOT_ORDER if name in plots] + [name for name in plots if name not in PLOT_ORDER]
    return Outcome(
        path=folder.path,
        history=read_history(folder.events()),
        settings=_settings(folder.path / "run.toml"),
        env=_json(folder.path / "env.json") or {},
        state=_state(folder),
        scores=_scores(folder.path / "evaluation.json"),
        grids=round_grids(folder.path / "grids"),
        plots={name: plots[name] for name in shown},
        loras=sorted((file.parent.name for file in (folder.path / "loras").glob(f"*/{DIFFUSERS_FILE}")), key=natural),
        metrics=_rows(folder.path / "metrics.csv"),
    )


def version() -> str:
    """Return the version of fedsd that reads the folder."""
    try:
        return metadata.version("fedsd")
    except metadata.PackageNotFoundError:
        return "from sources, not installed"


def _settings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return dict(flatten(tomllib.loads(file.read_text(encoding="utf-8"))))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _json(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}; delete it or make it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, not a {type(found).__name__}")
    return found


def _state(folder: RunFolder) -> dict[str, Any] | None:
    latest = folder.latest_round()
    return None if latest is None else _json(folder.path / "ckpt" / f"r{latest:02d}" / "state.json")


def _scores(file: Path) -> Scores | None:
    found = _json(file)
    if found is None:
        return None
    if not isinstance(found.get("scores"), dict):
        raise ValueError(f'{file} holds no "scores"; make it again with `fedsd evaluate`')
    return Scores(str(found.get("extractor", "unknown")), found["scores"])


def _rows(file: Path) -> list[list[str]]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as readable:
        return [row for row in csv.reader(readable) if row]
