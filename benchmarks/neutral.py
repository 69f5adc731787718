"""What neutralising a run's adapter does to L_g and to pictures, and why L_neu is never descended alone.

    python benchmarks/neutral.py RUN

RUN is the folder of a finished run, which is only read. Ratios are of losses on held-out prompts, after over before.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from points import record

from fedsd.base import load
from fedsd.base.denoise import Split
from fedsd.cli import neutralized_run as shell
from fedsd.cli.run_config import read_config
from fedsd.hybrid.neutralize import Teaching, neutralise
from fedsd.store import RunFolder

COMMAND = "python benchmarks/neutral.py RUN"


def main() -> None:
    """Neutralise with each seed, then once by L_neu alone, and record the points."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    config, begun = read_config(arguments.run), time.monotonic()
    base = load.load(config.base.name)
    _, lora_neu, clusters, w = shell.inputs_of(RunFolder(arguments.run))
    teaching = Teaching(shell.read_prompts(None, config.data.template), Split(20, 6, 1.5))
    found = {
        seed: neutralise(base, lora_neu, clusters, w, replace(teaching, seed=seed), print)
        for seed in range(arguments.seeds)
    }
    ratios = [shell.loss_ratio(one, teaching) for one in found.values()]
    left = [(one.after.mix - one.after.spread) / (one.before.mix - one.before.spread) for one in found.values()]
    alone = neutralise(base, lora_neu, clusters, w, replace(teaching, lambda_neu=1.0, lambda_mix=0.0), print)
    servers = {"base": {}, "neutral": lora_neu, "neutralised": found[0].lora, "by L_neu": alone.lora}
    drawn = shell.picture_errors(shell.draw_endings(base, servers, clusters, teaching))
    error = {who: float(np.mean([errors[who] for errors in drawn.values()])) for who in servers}
    print({"before": found[0].before, "after": found[0].after, "alone": alone.after, "picture_error": error})
    seconds, many = time.monotonic() - begun, {"spread": (min(ratios), max(ratios)), "seeds": len(ratios)}
    record("neutral.loss_ratio", np.mean(ratios), "< 1", command=COMMAND, seconds=seconds, **many)
    many["spread"] = (min(left), max(left))
    record("neutral.removable_left", np.mean(left), "< 1", command=COMMAND, seconds=seconds, **many)
    for name, value, target in (
        ("neutral.picture_error_over_neutral", error["neutralised"] / error["neutral"], "< 1"),
        ("neutral.picture_error_over_base", error["neutralised"] / error["base"], "< 1"),
        ("neutral.kl_alone_mix_ratio", alone.after.mix / alone.before.mix, "> 1"),
        ("neutral.kl_alone_picture_error_over_neutral", error["by L_neu"] / error["neutral"], "> 1"),
    ):
        record(name, value, target, command=COMMAND, seconds=seconds)


if __name__ == "__main__":
    main()
