"""The only reader of the run config: Flower's flat dict in, small frozen dataclasses out.

Keys and defaults live in `[tool.flwr.app.config]` of pyproject.toml and nowhere else. Every value is checked here,
before any node is contacted, and all faults are reported together.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from fedsd.sections import Config, DataConfig
from fedsd.values import METHODS, Value, are_methods, are_ranks, are_shares, are_span, conflicts, nearest, split_list

__all__ = [
    "METHODS", "RULES", "SECTIONS", "STRATEGIES", "Config", "DataConfig", "Value", "defaults", "fault_of", "flatten",
    "from_run_config", "keys", "split_list",
]  # fmt: skip

STRATEGIES = ("style-clustered", "everyone", "fedavg", "geometric-median", "flora", "local")
RULES_FOR_LORA = (
    "zero-padding", "hetlora", "rbla", "raflora", "flora", "flexlora", "florist", "lora-fair", "geometric-median",
    "trimmed-mean", "multi-krum", "norm-clipping", "fedit",
)  # fmt: skip

SECTIONS: dict[str, type] = {f.name: f.type for f in fields(Config)}  # type: ignore[misc]


def _at_least(low: float) -> tuple[Callable[[Value], bool], str]:
    return lambda v: isinstance(v, int | float) and v >= low, f"at least {low:g}"


def _between(low: float, high: float) -> tuple[Callable[[Value], bool], str]:
    return lambda v: isinstance(v, int | float) and low <= v <= high, f"between {low:g} and {high:g}"


def _one_of(*allowed: str) -> tuple[Callable[[Value], bool], str]:
    return lambda v: v in allowed, f"one of {', '.join(allowed)}"


RULES: dict[str, tuple[Callable[[Value], bool], str]] = {
    "run.seed": _at_least(0),
    "base.size": _at_least(0),
    "train.min-snr-gamma": _at_least(0),
    "wire.upload-seconds": _at_least(0),
    "cluster.leave-after": _at_least(0),
    "run.rounds": _at_least(1),
    "run.tolerance": _between(0, 1),
    "run.timeout": _at_least(1),
    "run.min-nodes": _at_least(1),
    "run.availability": (are_shares, 'pairs of a client and a share in (0, 1] as "c1=0.1,c3=0.5", or empty'),
    "base.name": (lambda v: bool(str(v).strip()), '"tiny", a folder, a file or a hub name'),
    "data.per-style": _at_least(1),
    "data.template": (lambda v: "{label}" in str(v), 'a text that holds "{label}"'),
    "data.partition": _one_of("by-style", "unequal", "dirichlet"),
    "data.concentration": _between(1e-3, 1e6),
    "method.name": _one_of(*METHODS),
    "method.of-clients": (are_methods, 'pairs of a client and a method as "c0=lora,c2=spire", or empty'),
    "lora.ranks": (are_ranks, "whole numbers of at least 1, separated by commas"),
    "spire.embedding-lr": _between(1e-9, 10),
    "spire.drop": (lambda v: isinstance(v, int | float) and 0 <= v < 1, "at least 0 and below 1"),
    "spire.form": _one_of("bias", "projected"),
    "spire.size": _between(1, 65536),
    "spire.backbone": _one_of("lora", "full"),
    "soda.shift-lr": _between(1e-9, 1),
    "soda.turn-lr": _between(1e-9, 1),
    "soda.form": _one_of("svd", "lq"),
    "soda.optimiser": _one_of("adamw", "stiefel-adam"),
    "token.name": (lambda v: str(v).lower().split() == [v], 'a name in lower case such as "<user-s>"'),
    "token.vectors": _between(1, 16),
    "token.initial": (lambda v: bool(str(v).strip()), "words that say roughly what the token shall mean"),
    "token.template": (lambda v: "{caption}" in str(v) and "{token}" in str(v), "a text with {caption} and {token}"),
    "zo.lr": _between(1e-9, 10),
    "zo.directions": _between(1, 1024),
    "zo.smoothing": _between(1e-9, 1),
    "zo.estimator": _one_of("rge", "subspace-gradient", "orthogonal", "sensitive"),
    "zo.timesteps": (are_span, 'two whole numbers that rise, as "500,900"'),
    "zo.bits": (lambda v: v in (0, 4, 8), "0, 4 or 8"),
    "zo.share": (lambda v: isinstance(v, int | float) and 0 < v <= 1, "above 0 and at most 1"),
    "train.steps": _at_least(1),
    "train.batch-size": _at_least(1),
    "train.lr": _between(1e-9, 1),
    "train.text-lr": _between(0, 1),
    "train.lr-ratio": _between(1, 64),
    "train.precision": _one_of("float32", "bfloat16", "float16"),
    "train.caption-dropout": _between(0, 1),
    "train.timesteps": (lambda v: v == "" or are_span(v), 'two whole numbers that rise, as "0,700", or empty'),
    "style.source": _one_of("images", "prompts"),
    "style.key": _one_of("none", "turn"),
    "strategy.name": _one_of(*STRATEGIES),
    "strategy.inside": _one_of(*RULES_FOR_LORA),
    "strategy.across": _one_of(*RULES_FOR_LORA),
    "strategy.stack-cap": (lambda v: v == 0 or (isinstance(v, int) and v >= 2), "0 or at least 2"),
    "strategy.participation": _one_of("none", "inverse-rate"),
    "wire.encoding": _one_of("float32", "float16", "int8"),
    "cluster.method": _one_of("k-means", "agglomerative", "hdbscan"),
    "cluster.threshold": _between(0, 2),
    "cluster.outliers": _one_of("singleton", "nearest"),
    "mix.alpha": _between(0, 1),
    "mix.formula": _one_of("normalised", "literal"),
    "neutral.rank": _at_least(1),
}


def keys() -> dict[str, type]:
    """Return every key of the run config with its type."""
    return {
        f"{section}.{field.name.replace('_', '-')}": field.type  # type: ignore[misc]
        for section, kind in SECTIONS.items()
        for field in fields(kind)
    }


def defaults() -> dict[str, Value]:
    """Return the flat run config of `[tool.flwr.app.config]`; the wheel carries pyproject.toml beside this file."""
    here = Path(__file__).resolve().parent
    file = next(p for p in (here / "pyproject.toml", here.parent / "pyproject.toml") if p.exists())
    return flatten(tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"])


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, Value]:
    """Turn nested TOML tables into Flower's flat form: {"run": {"rounds": 3}} -> {"run.rounds": 3}."""
    flat: dict[str, Value] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
        else:
            raise ValueError(f'{prefix}{key} is a {type(value).__name__}; write lists as text, e.g. "4,8,16"')
    return flat


def fault_of(key: str, value: Value) -> str | None:
    """Say what is wrong with `key = value`, or None."""
    known = keys()
    if key not in known:
        return f"unknown setting {key!r}; did you mean {nearest(key, known)!r}?"
    wanted = known[key]
    if isinstance(value, int) and not isinstance(value, bool) and wanted is float:
        value = float(value)
    if type(value) is not wanted:
        return f"{key} must be of type {wanted.__name__}; got {value!r} ({type(value).__name__})"
    holds, allowed = RULES.get(key, (lambda _: True, ""))
    return None if holds(value) else f"{key} must be {allowed}; got {value!r}"


def from_run_config(flat: Mapping[str, Value]) -> Config:
    """Return the typed config.

    Raises ValueError with one line per fault: unknown key (the nearest name is offered), missing key, wrong type,
    value out of range, values that exclude each other.
    """
    known = keys()
    faults = [fault for key, value in flat.items() if (fault := fault_of(key, value))]
    faults += [
        f"setting {key!r} is missing; every key needs a default in pyproject.toml" for key in known if key not in flat
    ]
    if faults := faults or conflicts(flat):
        raise ValueError("the run config has faults:\n  " + "\n  ".join(faults))
    sections = {
        name: kind(**{
            f.name: f.type(flat[f"{name}.{f.name.replace('_', '-')}"])  # type: ignore[operator]
            for f in fields(kind)
        })
        for name, kind in SECTIONS.items()
    }  # fmt: skip
    return Config(**sections)
