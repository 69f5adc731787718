"""What `fedsd run` does around the simulation: plan, check, run, draw the report, and say how it ended."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from fedsd import config as configuration
from fedsd.cli.progress import Progress
from fedsd.cli.run import Machine, simulate
from fedsd.store import RunFolder
from fedsd.values import methods_by_name, shares_by_name, strangers

Show = Callable[[str], None]
COLUMNS = 8  # of a sample grid


@dataclass(frozen=True)
class Plan:
    """What is about to run."""

    machine: Machine
    config: configuration.Config
    styles: dict[str, int]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: str
    completed: bool
    rounds: int
    failures: int
    messages: int
    reason: str
    report: str

    def exit_code(self, max_failures: float) -> int:
        """Return 0, 1 for a failed run, or 3 when more than this share of the client messages failed."""
        if not self.completed:
            return 1
        return 3 if self.failures > max_failures * max(1, self.messages) else 0

    def as_dict(self, max_failures: float) -> dict[str, object]:
        """Return all fields and the exit code, for JSON."""
        return {**asdict(self), "exit_code": self.exit_code(max_failures)}


def plan(flat: Mapping[str, configuration.Value], clients: int, show: Show) -> Plan:
    """Check settings, base, ranks and pictures before anything starts, and say what will run.

    Raises ValueError naming the setting, file or folder at fault.
    """
    config = configuration.from_run_config(flat)
    names = [f"c{i}" for i in range(clients)]
    named: dict[str, Iterable[str]] = {
        "run.availability": shares_by_name(config.run.availability),
        "method.of-clients": methods_by_name(config.method.of_clients),
    }
    for setting, given in named.items():
        for name, near in strangers(given, names).items():
            raise ValueError(f"{setting} names {name}, and the clients are c0 to {names[-1]}; did you mean {near}?")
    from fedsd.base import adapters, load
    from fedsd.cli.sampling import holdings
    from fedsd.client_app import CACHE, private_root
    from fedsd.methods.table import METHODS, Place

    base = load.load(config.base.name)
    root = private_root(config.node.private_dir) / CACHE
    places = {name: Place(config.of(name), config.lora.rank_of(i), root) for i, name in enumerate(names)}
    ranks = [place.rank for place in places.values() if place.config.shares_factors]
    for rank in set(ranks):
        adapters.check_rank(base, rank, config.lora.text_encoder, config.lora.convolutions)
    machine = Machine(os.cpu_count() or 1, _gpus(), clients, int(os.environ.get("OMP_NUM_THREADS", "1")))
    held = holdings(config, names)
    styles = Counter(example.style for mine in held.values() for example in mine)
    sizes = [METHODS[place.config.method.name].numbers(base, place) for place in places.values()]
    size = float(np.mean(sizes))
    trained = Counter(place.config.method.name for place in places.values())
    what = ", ".join(f"{method} x {count}" if len(trained) > 1 else method for method, count in trained.items())
    what += f" {_said(ranks)}" if ranks else ""
    counts = "  ".join(f"{style} {count}" for style, count in sorted(styles.items()))
    version, upload = metadata.version("fedsd"), 4 * size / 1e6
    show(f"fedsd {version}  base {config.base.name}  cpus {machine.cpus}  gpus {machine.gpus}  run {config.run.folder}")
    show(f"data   {clients} clients  {counts}  ({config.data.root or 'drawn by fedsd'}, {config.data.partition})")
    show(
        f"plan   {config.run.rounds} rounds x {config.train.steps} steps of {config.train.batch_size}  "
        f"{config.strategy.name}  {what}  upload {upload:.2f} MB per client"
    )
    return Plan(machine, config, dict(styles))


def _said(ranks: list[int]) -> str:
    """Clients' ranks in words: one by one where a line holds them, else how many clients have each."""
    counts = Counter(ranks)
    if len(counts) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) <= 8:
        return f"ranks {','.join(map(str, ranks))}"
    return "ranks " + ", ".join(f"{rank} x {count}" for rank, count in sorted(counts.items()))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def go(flat: Mapping[str, configuration.Value], what: Plan, *, port: int | None, show: Show, report: bool) -> Outcome:
    """Run the simulation and, if asked, draw the report; returns how it ended.

    Raises ValueError when the folder already holds a run, or holds none to resume, and when the port is in use.
    """
    folder = Path(what.config.run.folder)
    RunFolder.open(folder) if what.config.run.resume else RunFolder.create(folder)
    progress = Progress(folder, show)
    completed = simulate(flat, what.machine, port, progress)
    page = draw_report(folder, show) if report and (folder / "run.toml").exists() else ""
    if not completed:
        show(f"FAILED  {progress.reason or 'see the log'}  (full text: {folder / 'logs' / 'run.log'})")
    if page:
        show(f"files  {page}")
    if completed:
        loras = f'fedsd generate "a house" --lora {folder}/loras/cluster-0'
        use = loras if what.config.shares_factors else f"fedsd export {folder} --to diffusers"
        show(f"next   fedsd evaluate {folder} | {use}")
    return Outcome(
        str(folder), completed, progress.rounds, progress.failures, progress.messages, progress.reason, str(page)
    )


def draw_report(folder: Path, show: Show) -> Path:
    """Draw what is missing of the run's sample grids, its plots and report.html; returns the page.

    A run that failed before its first round was complete gets a page that says why, without pictures.
    """
    from fedsd.cli import plots
    from fedsd.cli.report import write_report

    run = RunFolder.open(folder)
    if run.latest_round() is not None:
        draw_grids(folder, show)
        plots.draw_plots(run)
    return write_report(folder)


def draw_grids(folder: Path, show: Show) -> None:
    """Draw the sample grid of each round that has none yet, and the timeline through all of them."""
    from fedsd.base import load
    from fedsd.base.training import Shared
    from fedsd.cli import grids, sampling
    from fedsd.cli.picture import SAMPLERS

    run = sampling.finished(folder)
    prompts = sampling.grid_prompts(run, COLUMNS)
    missing = [n for n in run.folder.rounds() if not (folder / "grids" / f"r{n:02d}.png").exists()]
    if not prompts or not missing:
        return
    base = load.load(run.config.base.name)
    usual = sampling.usual_settings(base)
    about = {"Steps": sampling.STEPS, "CFG scale": usual.guidance, "Sampler": SAMPLERS[usual.sampler]}
    text = grids.parameters_text(" | ".join(prompts), {**about, "Model": run.config.base.name})
    with sampling.carried(run, base, Shared()) as paint:
        untouched = list(paint(prompts))
    for number in missing:
        (_, _), *adapted = sampling.rows(sampling.finished(folder, number))
        drawn = [("base", untouched)]
        for label, shared in adapted:
            with sampling.carried(run, base, shared) as paint:
                drawn.append((label, list(paint(prompts))))
        grids.save_grid(grids.grid(drawn, sampling.titles(run, prompts)), folder / "grids" / f"r{number:02d}.png", text)
        show(f"grid   r{number:02d}.png")
    grids.timeline(folder / "grids")
