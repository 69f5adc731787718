"""The run config that a run folder was made with."""

import tomllib
from pathlib import Path

from fedsd import config as configuration


def read_config(folder: Path) -> configuration.Config:
    """Return the run config that a run folder was made with; ValueError when there is none.

    Settings that there were none of yet have their defaults.
    """
    try:
        flat = configuration.flatten(tomllib.loads((folder / "run.toml").read_text(encoding="utf-8")))
    except OSError:
        raise ValueError(
            f"{folder} holds no run.toml, so it is no run folder; give the folder that `fedsd run` named"
        ) from None
    return configuration.from_run_config(configuration.defaults() | flat)


def require_factors(folder: Path, what: str) -> None:
    """Raise ValueError unless the run's adapters are LoRA factors, which `what` works on."""
    config = read_config(folder)
    if not config.shares_factors:
        raise ValueError(
            f"{what} works on LoRA factors, and {folder} trained method.name = {config.method.name!r}, which shares "
            f"other numbers; write its whole models with: fedsd export {folder} --to diffusers"
        )
