"""The Training Edge Server in Flower: it opens the run folder, builds the strategy and lets it run.

It never imports torch, diffusers or the base: the paper's server has no access to the full model (section 3.1).
"""

import json
import logging
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedsd import config as configuration
from fedsd.seeded import rule_of
from fedsd.store import RunFolder
from fedsd.strategies.aggregate import Settings
from fedsd.strategies.parts import parts_by_method
from fedsd.strategies.recorded import Recorded
from fedsd.strategies.round import Round, arrays_of, from_state, to_state
from fedsd.strategies.schedule import Schedule
from fedsd.strategies.style_clustered import StyleClusteredLoRA
from fedsd.strategies.validate import Limits
from fedsd.values import shares_by_name

LOG = logging.getLogger("flwr.fedsd")

app = ServerApp()


def run_folder(config: configuration.Config) -> Path:
    """Return the absolute run folder: the one asked for, or a new one under ./runs."""
    if config.run.folder:
        return Path(config.run.folder).expanduser().absolute()
    return Path("runs").absolute() / datetime.now(UTC).strftime("%Y-%m-%d_%H%M%S")


def strategy_of(config: configuration.Config, folder: RunFolder) -> StyleClusteredLoRA:
    """Return the strategy that the run config describes, writing into `folder`."""

    def on_event(event: dict[str, Any]) -> None:
        folder.append_event(event)
        if event["event"] == "client.done":
            folder.append_metrics({key: value for key, value in event.items() if key != "event"})

    def on_round(after: Round) -> None:
        state, loras = to_state(after)
        folder.save_round(state, loras, arrays_of(after))
        for name, lora in loras.items():
            if lora and "/" not in name:
                folder.export(name, lora)

    return StyleClusteredLoRA(
        Settings(
            rule=config.strategy.name, method=config.cluster.method, threshold=config.cluster.threshold,
            outliers=config.cluster.outliers, alpha=config.mix.alpha, formula=config.mix.formula,
            rank_cap=config.neutral.rank, inside=config.strategy.inside, across=config.strategy.across,
            participation=config.strategy.participation, leave_after=config.cluster.leave_after,
            detect=config.strategy.detect,
        ),
        schedule=Schedule(
            seed=config.run.seed, min_nodes=config.run.min_nodes, tolerance=config.run.tolerance,
            # int8 without the error feedback that only an uploading client has would lose more than it saves
            encoding="float16" if config.wire.encoding == "int8" else config.wire.encoding,
            stack_cap=config.strategy.stack_cap, availability=shares_by_name(config.run.availability),
            upload_encoding=config.wire.encoding, upload_seconds=config.wire.upload_seconds,
        ),
        limits=Limits(parts=parts_by_method(config.spire.form, config.spire.backbone)),
        replay=rule_of(config.zo.estimator, config.zo.lr),
        on_event=on_event,
        on_round=on_round,
    )  # fmt: skip


def open_folder(config: configuration.Config, flat: Mapping[str, configuration.Value]) -> RunFolder:
    """Return the run folder, new with run.toml and env.json, or the one to resume."""
    if config.run.resume:
        return RunFolder.open(run_folder(config))
    folder = RunFolder.create(run_folder(config))
    folder.write("run.toml", tomli_w.dumps(dict(sorted(flat.items()))))
    versions = {name: metadata.version(name) for name in ("flwr", "numpy", "scipy", "scikit-learn", "safetensors")}
    about = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}
    folder.write("env.json", json.dumps({**about, **versions}, indent=1))
    return folder


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run Algorithm 1 over the nodes of `grid`."""
    config = configuration.from_run_config(context.run_config)
    folder = open_folder(config, context.run_config)
    LOG.info("run folder %s", folder.path)
    strategy = strategy_of(config, folder)
    last = folder.latest_round()
    if last is not None:
        strategy.resume(from_state(*folder.load_round(last), folder.load_arrays(last)))
    folder.append_event({
        "event": "run.start", "run": folder.path.name, "rounds": config.run.rounds,
        "strategy": config.strategy.name, "method": config.method.name,
    })  # fmt: skip
    if config.run.record:
        grid = Recorded(grid, folder)
    strategy.start(grid, ArrayRecord(), num_rounds=config.run.rounds, timeout=config.run.timeout)
