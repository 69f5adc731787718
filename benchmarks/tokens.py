"""What the two servers of real simulated runs can tell of each device's style: the attacks A1 to A6, by training mode.

    python benchmarks/tokens.py [--out DIR] [--modes lora,token]

Eight clients, two for each of four drawn styles, two rounds on Flower's engine with the settings as shipped; the server
keeps the bytes of every reply. In the second mode each client first learns a private word and trains its LoRA on
captions with it (`token_node.py`). Runs that are there already are audited and not made again.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from points import record
from section import table, write_section

from fedsd import config as configuration
from fedsd.cli import launch, run
from fedsd.cli.audit import audit
from fedsd.cli.progress import Progress
from fedsd.store import RunFolder

MODES = {"lora": "LoRA", "token": "LoRA + token"}
CLIENTS = 8
TARGET = "<= 0.05"
HEAD = """# Private words: what the servers can tell

Each attack guesses a device's style from what was seen; "right" is the share of devices for which it is right, and
chance that of a guess. "Sent" marks what a run with the settings as shipped really sends. "Grouping" is the adjusted
Rand index of the server's clusters and the true styles under that defence: what it costs. A5 asks who it was, not which
style, and does not count for the worst."""


def main() -> None:
    """Run, audit, write the page and record the point."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-tokens")
    args.add_argument("--modes", default=",".join(MODES))
    args.add_argument("--steps", type=int, default=30)
    args.add_argument("--audit-again", action="store_true")
    opts = args.parse_args()
    began = time.monotonic()
    chosen = opts.modes.split(",")
    results = {mode: audited(opts.out.absolute() / mode, mode, opts) for mode in chosen}
    for mode, result in results.items():
        write_section("tokens.md", HEAD, f"tokens-{mode}", section(MODES[mode], result))
    if set(chosen) == set(MODES):
        record(
            "tokens.worst_attack_minus_chance", max(result["worst"]["over_chance"] for result in results.values()),
            TARGET, command="python benchmarks/tokens.py", seconds=time.monotonic() - began,
        )  # fmt: skip


def audited(folder: Path, mode: str, opts: argparse.Namespace) -> Mapping[str, Any]:
    """Return the audit of a run, made now where it is not there."""
    if not (folder / "ckpt" / "r02").exists():
        federate(folder, mode, opts.steps)
    kept = folder / "audit" / "tokens.json"
    if kept.exists() and not opts.audit_again:
        return json.loads(kept.read_text())  # type: ignore[no-any-return]
    return audit(folder, mode=MODES[mode], say=print)


def federate(folder: Path, mode: str, steps: int) -> None:
    """Run two rounds of the demo's styles; RuntimeError when the run fails."""
    flat = configuration.defaults() | run.read_preset("demo") | {
        "run.rounds": 2, "run.min-nodes": CLIENTS, "run.folder": str(folder), "run.record": True,
        "train.steps": steps, "train.batch-size": 8, "data.per-style": 48,
        "node.private-dir": str(folder.parent / f"{mode}-nodes"),
    }  # fmt: skip
    plan = launch.plan(flat, CLIENTS, print)
    RunFolder.create(folder)
    files = dict(run.APP)
    if mode == "token":
        own = Path(__file__).with_name("token_node.py").read_text(encoding="utf-8")
        files |= {"token_node.py": own, "node.py": 'from token_node import app\n\n__all__ = ["app"]\n'}
    if not run.simulate(flat, plan.machine, None, Progress(folder, print), files):
        raise RuntimeError(f"the run in {folder} failed; see {folder / 'logs' / 'run.log'}")


def section(mode: str, result: Mapping[str, Any]) -> str:
    """Return a mode's table and its worst attack."""
    rows = [
        (
            row["server"], row["attack"], row["seen"], row["defence"], f"{row['accuracy']:.3f}", f"{row['chance']:.3f}",
            "" if row["clusters"] is None else f"{row['clusters']:.2f}", "yes" if row["shipped"] else "",
        )
        for row in result["rows"]
    ]  # fmt: skip
    worst = result["worst"]
    return "\n".join([
        f"## {mode}", "",
        f"{result['clients']} clients, {len(result['styles'])} styles, `style.key = \"{result['style_key']}\"`; "
        f"accuracies under a key are means over {result['keys']} keys; {result['shadows']} shadows of each style.", "",
        table(("server", "attack", "on", "defence", "right", "chance", "grouping", "sent"), rows), "",
        f"Worst for the style of what is sent: {worst['attack']} on the {worst['seen']}, {worst['accuracy']:.3f} "
        f"against {worst['chance']:.3f}, which is {worst['over_chance']:+.3f} (target {TARGET}).", "",
        "`python benchmarks/tokens.py`",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
