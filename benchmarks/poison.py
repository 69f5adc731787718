"""A fifth of the clients of every cluster poisoned: what the mean, the robust rules and detection keep of the pictures.

    python benchmarks/poison.py --emoji DIR --realism SCRIPT [--out DIR]

Ten clients, five for each of two emoji styles, and one attacker among each five. Every attack is a federated run of its
own for every rule, with `attackers.py` as the node's app; each cluster's pictures are scored against held-out ones and
beside those of the clean run with the plain mean. Runs and scores that are there already are not made again.
"""

import argparse
import csv
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attackers import Plan
from judge import Judge, write_pictures
from PIL import Image
from points import FILE, record
from styles import judge_pictures

from fedsd import config as configuration
from fedsd.base import load
from fedsd.cli import launch, run, sampling
from fedsd.cli.evaluate import prompts_of
from fedsd.cli.progress import Progress
from fedsd.data.example import Example
from fedsd.lowrank import LoRA
from fedsd.store import RunFolder

ATTACKS = {
    "scale": "ten times its update",
    "flip": "its update with the sign turned",
    "noise": "noise of its update's norm",
    "backdoor": "an update trained on one fixed picture of the other style under all of its captions",
}
RULES: dict[str, dict[str, configuration.Value]] = {
    "mean": {},
    "mean, detection": {"strategy.detect": True},
    "geometric-median": {"strategy.inside": "geometric-median"},
    "trimmed-mean": {"strategy.inside": "trimmed-mean"},
    "multi-krum": {"strategy.inside": "multi-krum"},
}
CLIENTS = 10
PAGE = FILE.parent / "poison.md"
Scores = Mapping[
    tuple[str, str], Mapping[str, Any]
]  # (attack or "", rule) -> {"kid": {style: x}, "left_out", "seconds"}


@dataclass(frozen=True)
class Setup:
    """What all runs share. held: the clients' own pictures; attackers: one client of each style."""

    flat: dict[str, configuration.Value]
    emoji: Path
    out: Path
    held: Mapping[str, tuple[Example, ...]]
    attackers: Mapping[str, str]


def main() -> None:
    """Run, draw, judge, write the page and record the point."""
    opts = arguments()
    if "mean" not in opts.rules.split(";"):
        raise SystemExit(f"--rules {opts.rules!r} lacks mean, over whose clean run every figure is; add it")
    judge = Judge(opts.realism)
    setup = prepare(opts)
    pictures_with_trigger(setup)
    scores: dict[tuple[str, str], dict[str, Any]] = {}
    for rule in opts.rules.split(";"):
        for attack in ["", *(name for name in opts.attacks.split(",") if name)]:
            if opts.render and not (folder_of(setup, attack, rule) / "kid.json").exists():
                continue  # not run yet
            seconds = federate(setup, attack, rule)
            scores[attack, rule] = judged(setup, judge, folder_of(setup, attack, rule), opts) | {"seconds": seconds}
            print(attack or "clean", rule, json.dumps(scores[attack, rule]), flush=True)
    bare = bare_of(setup, judge, opts)
    text = page(setup, opts, scores, bare)
    (setup.out / "poison.md").write_text(text)
    if not opts.no_record:
        PAGE.write_text(text)
    best = recommended(scores)
    if not opts.no_record and all((attack, best) in scores for attack in ATTACKS):
        record(
            "agg.poison_kid_ratio", worst(scores, best), "<= 1.1",
            command="python benchmarks/poison.py --emoji DIR --realism SCRIPT",
            seconds=sum(entry["seconds"] for entry in scores.values()),
        )  # fmt: skip


def arguments() -> argparse.Namespace:
    """Return the command's options."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-poison")
    args.add_argument("--styles", default="openmoji_black,serenity_pixel")
    args.add_argument("--rounds", type=int, default=2)
    args.add_argument("--steps", type=int, default=50)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--pictures", type=int, default=160, help="of each cluster and run; at least 20")
    args.add_argument("--denoise", type=int, default=12, help="denoising steps")
    args.add_argument("--attacks", default=",".join(ATTACKS))
    args.add_argument("--rules", default=";".join(RULES), help="separated by semicolons")
    args.add_argument("--no-record", action="store_true")
    args.add_argument("--render", action="store_true", help="only what the runs that are there give")
    return args.parse_args()


def prepare(opts: argparse.Namespace) -> Setup:
    """Return the settings of all runs, who holds what and who attacks."""
    out = opts.out.absolute()
    flat = configuration.defaults() | run.read_preset("emoji") | {
        "run.rounds": opts.rounds, "run.min-nodes": CLIENTS, "data.root": str(opts.emoji.absolute()),
        "data.styles": opts.styles, "train.steps": opts.steps, "train.batch-size": opts.batch,
        "node.private-dir": str(out / "nodes"),
        "cluster.method": "agglomerative",  # HDBSCAN parts five clients of one style into groups too small to judge
    }  # fmt: skip
    config = configuration.from_run_config(flat)
    held = sampling.holdings(config, [f"c{k}" for k in range(CLIENTS)])
    attackers: dict[str, str] = {}
    # of the lowest rank, so that ten times its norm is not ten times the round's median, which no node may send
    for k in sorted(range(CLIENTS), key=lambda k: (config.lora.rank_of(k), k)):
        attackers.setdefault(held[f"c{k}"][0].style, f"c{k}")
    return Setup(flat, opts.emoji.absolute(), out, held, attackers)


def pictures_with_trigger(setup: Setup) -> Path:
    """Write a folder like the emoji's, where the attackers' pictures show one fixed picture of another style."""
    folder = setup.out / "backdoor"
    if (folder / "index.csv").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    styles = sorted(setup.attackers)
    swapped: dict[str, Path] = {}
    for style, client in setup.attackers.items():
        other = styles[(styles.index(style) + 1) % len(styles)]
        trigger = min(example.path for mine in setup.held.values() for example in mine if example.style == other)
        swapped |= {str(example.path.relative_to(setup.emoji)): trigger for example in setup.held[client]}
    for style in styles:
        (folder / style).symlink_to(setup.emoji / style)
    (folder / "trigger").mkdir(exist_ok=True)
    with (setup.emoji / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["style"] in styles]
    for number, row in enumerate(rows):
        if (trigger := swapped.get(row["path"])) is not None:
            row["path"] = f"trigger/{number}.png"
            shutil.copy(trigger, folder / row["path"])
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


def folder_of(setup: Setup, attack: str, rule: str) -> Path:
    """Return the run folder of an attack, "" for none, under a rule."""
    return setup.out / f"{attack or 'clean'}-{rule.replace(', ', '-')}"


def federate(setup: Setup, attack: str, rule: str) -> float:
    """Run one federation unless it is there already; returns its seconds."""
    folder = folder_of(setup, attack, rule)
    timing = folder / "seconds.txt"
    if not timing.exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has trained is kept elsewhere
        begun = time.time()
        flat = setup.flat | RULES[rule] | {"run.folder": str(folder)}
        attackers = tuple(sorted(setup.attackers.values()))
        plan = Plan(attack, attackers, str(setup.out / "backdoor"), str(setup.out / "trained"))
        node = f'from attackers import Plan, app_with\n\napp = app_with({plan!r})\n\n__all__ = ["app"]\n'
        source = Path(__file__).with_name("attackers.py").read_text(encoding="utf-8")
        machine = launch.plan(flat, CLIENTS, print).machine
        files = run.APP | {"node.py": node, "attackers.py": source}
        if not run.simulate(flat, machine, None, Progress(folder, print), files):
            raise RuntimeError(f"the run in {folder} failed; see its logs")
        timing.write_text(str(time.time() - begun))
    return float(timing.read_text())


def judged(setup: Setup, judge: Judge, folder: Path, opts: argparse.Namespace) -> dict[str, Any]:
    """Return each style's KID by its cluster's adapter, and whose updates were left out in which round."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    left_out = [f"{e['client']} in {e['round']}" for e in events if e["event"] == "client.failed"]
    kept = folder / "kid.json"
    if not kept.exists():
        done = sampling.finished(folder)
        loras = {style: done.loras[done.cluster_of_style(style)] for style in setup.attackers}
        drawn = {style: kid_of(setup, judge, lora, style, folder / "pictures", opts) for style, lora in loras.items()}
        kept.write_text(json.dumps(drawn))
    return {"kid": json.loads(kept.read_text()), "left_out": left_out}


def bare_of(setup: Setup, judge: Judge, opts: argparse.Namespace) -> dict[str, float]:
    """Return each style's KID by the base alone."""
    folder = setup.out / "pictures" / "base"
    kept = folder / "kid.json"
    if not kept.exists():
        drawn = {style: kid_of(setup, judge, {}, style, folder, opts) for style in setup.attackers}
        kept.write_text(json.dumps(drawn))
    return dict(json.loads(kept.read_text()))


def worst_cell(scores: Scores, attack: str, rule: str) -> str:
    """Return the cell of the first table: the cluster that suffers most, or a dash for a run that is not there."""
    return f"{max(ratios(scores, attack, rule).values()):.3f}" if (attack, rule) in scores else "-"


def kid_of(setup: Setup, judge: Judge, lora: LoRA, style: str, folder: Path, opts: argparse.Namespace) -> float:
    """Return KID x 1000 of the base's pictures with `lora` against held-out ones; prompts and seeds never differ."""
    done = sampling.Finished(RunFolder(folder), configuration.from_run_config(setup.flat), {}, {}, setup.held)
    made = sampling.sample(load.load("tiny"), lora, prompts_of(done, style, opts.pictures), steps=opts.denoise)
    fake = judge.features(write_pictures([Image.fromarray(one) for one in made], folder / style))
    return float(judge.kid(judge_pictures(judge, done, style, "split=heldout"), fake)[0])


def ratios(scores: Scores, attack: str, rule: str) -> dict[str, float]:
    """Return each style's KID over that of the clean run with the plain mean."""
    clean = scores["", "mean"]["kid"]
    return {style: kid / clean[style] for style, kid in scores[attack, rule]["kid"].items()}


def worst(scores: Scores, rule: str) -> float:
    """Return the largest ratio over attacks and clusters."""
    return max(max(ratios(scores, attack, rule).values()) for attack, other in scores if attack and other == rule)


def recommended(scores: Scores) -> str:
    """Return the rule, other than the plain mean, whose worst ratio is the lowest."""
    return min({rule for _, rule in scores} - {"mean"}, key=lambda rule: (worst(scores, rule), rule))


def page(setup: Setup, opts: argparse.Namespace, scores: Scores, bare: Mapping[str, float]) -> str:
    """Return the page of results as Markdown."""
    rules = list(dict.fromkeys(rule for _, rule in scores))
    attacks = list(dict.fromkeys(attack for attack, _ in scores))
    best, styles = recommended(scores), sorted(setup.attackers)
    attackers = ", ".join(f"{client} of {style}" for style, client in sorted(setup.attackers.items()))
    lines = [
        "# Poisoned clients",
        "",
        "Written by `python benchmarks/poison.py --emoji DIR --realism SCRIPT`.",
        "",
        f"{CLIENTS} clients, five for each of {' and '.join(styles)}, of ranks 4, 8 and 16 in turn; {opts.rounds} "
        f"rounds of {opts.steps} steps, agglomerative clusters. One of each five attacks ({attackers}). It sends:",
        "",
        *(f"- {attack}: {ATTACKS[attack]}" for attack in attacks if attack),
        "",
        f"KID by an extractor that fedsd did not train, {opts.pictures} pictures a cluster against held-out ones, with "
        "the same prompts and seeds everywhere. Figures are the KID over that of the clean run with the plain mean, "
        "for the cluster that suffers most; at most 1.1 is wanted.",
        "",
        "| attack | " + " | ".join(rules) + " |",
        "|---" * (len(rules) + 1) + "|",
        *(
            f"| {attack or 'none'} | " + " | ".join(worst_cell(scores, attack, rule) for rule in rules) + " |"
            for attack in attacks
        ),
        "",
        f"Of the robust rules **{best}** has the lowest worst figure under attack, {worst(scores, best):.3f}; the "
        f"plain mean's is {worst(scores, 'mean'):.3f}.",
        "",
        "## Every cluster",
        "",
        "KID x 1000 (over the clean mean's). The base alone: "
        + ", ".join(f"{style} {bare[style]:.0f}" for style in styles)
        + ". Left out: clients whose updates the checks of single updates or detection dropped, and the round.",
        "",
        "| attack | rule | " + " | ".join(styles) + " | left out |",
        "|---" * (len(styles) + 3) + "|",
    ]
    for (attack, rule), entry in scores.items():
        over = ratios(scores, attack, rule)
        cells = " | ".join(f"{entry['kid'][style]:.0f} ({over[style]:.3f})" for style in styles)
        lines.append(f"| {attack or 'none'} | {rule} | {cells} | {', '.join(entry['left_out']) or 'nobody'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
