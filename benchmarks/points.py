"""Write a measured point as a line of docs/results/points.jsonl; the last line of an id counts."""

import json
import operator
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs" / "results" / "points.jsonl"
RELATIONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "=": operator.eq}


def machine() -> str:
    """Return cores, memory and GPU of this machine in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except ImportError:
        gpus = []
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {', '.join(gpus) or 'no GPU'}"


def commit() -> str:
    """Return the short commit, with a plus where the tree has changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=FILE.parent, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def holds(value: float, target: str) -> bool:
    """Say whether `value` meets a target such as "<= 60"."""
    relation, bound = re.fullmatch(r"(<=|<|>=|>|=)\s*(\S+)", target).groups()  # type: ignore[union-attr]
    return bool(RELATIONS[relation](value, float(bound)))


def given(*options: str) -> str:
    """Return those of `options` that this process was called with, and their values: " --steps 10"."""
    kept, keeping = "", False
    for word in sys.argv[1:]:
        if word.startswith("-"):
            keeping = word.split("=")[0] in options
        kept += f" {word}" if keeping else ""
    return kept


def record(
    name: str,
    value: float,
    target: str,
    *,
    command: str,
    seconds: float,
    spread: tuple[float, float] | None = None,
    seeds: int = 1,
) -> None:
    """Append a point and print it."""
    point = {
        "id": name, "value": round(float(value), 6), "target": target, "holds": holds(value, target), "spread": spread,
        "seeds": seeds, "command": command, "seconds": round(seconds), "machine": machine(), "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")
    print(f"{name} = {point['value']:g}  ({target}: {'holds' if point['holds'] else 'missed'})", flush=True)
