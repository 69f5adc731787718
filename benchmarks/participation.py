"""How far a cluster's mean is from that of full participation when members take part at rates of 10:1.

    python benchmarks/participation.py

Eight clients of one style with fixed updates of full rank, so that nothing is cut: what is measured is the estimator,
not training. Half of them take part in every round and half in one of ten, and images are unequal. Rounds go through
`aggregate_round`, once with plain averaging and once weighted, on the same draws; the rates are known to nobody. The
bias is the norm of (mean over the rounds - full mean), after as many rounds as the start takes to fade; the
error of a single round, root mean square, is shown beside it.
"""

import time

import numpy as np
from points import record

from fedsd.lowrank import Factor, dense
from fedsd.strategies import Settings, aggregate_round
from fedsd.wire import Update

RATES = (1.0, 0.1) * 4
IMAGES = (40, 60, 80, 100, 100, 80, 60, 40)
SIDE, ROUNDS, WARM_UP, SEEDS = 6, 1500, 100, 5


def updates_of(seed: int) -> list[Update]:
    """Return the clients' updates: one square layer of full rank, one style."""
    rng, z = np.random.default_rng(seed), np.float32([1, 0])
    found = []
    for index, n in enumerate(IMAGES):
        B, A = rng.standard_normal((2, SIDE, SIDE)).astype(np.float32)
        found.append(Update(f"c{index}", {"unet.to_q": Factor(B, A)}, z, n, SIDE, "abc123", 1.0, 0.5, 1.0, 50.0))
    return found


def errors(updates: list[Update], participation: str, seed: int) -> tuple[float, float]:
    """Return bias and root mean square error of the cluster's adapter, as shares of the full mean's norm."""
    rng = np.random.default_rng([seed, 1])
    settings = Settings(rule="everyone", participation=participation)
    full = sum(one.n * dense(one.lora["unet.to_q"]) for one in updates) / sum(IMAGES)
    after, off = aggregate_round(updates, None, settings, 1), []
    for server_round in range(2, ROUNDS + 2):
        there = [one for one, rate in zip(updates, RATES, strict=True) if rng.random() < rate]
        after = aggregate_round(there, after, settings, server_round)
        if server_round > WARM_UP:
            off.append(dense(after.clusters[0].lora["unet.to_q"]) - full)
    size = np.linalg.norm(full)
    return float(np.linalg.norm(np.mean(off, axis=0)) / size), float(np.sqrt(np.mean(np.square(off)) * SIDE**2) / size)


def main() -> None:
    """Measure with several draws, print a table, keep the point."""
    began, ratios = time.monotonic(), []
    print("| seed | bias, plain | bias, weighted | ratio | error of a round, plain | weighted |\n" + "|---" * 6 + "|")
    for seed in range(SEEDS):
        updates = updates_of(seed)
        plain, weighted = (errors(updates, participation, seed) for participation in ("none", "inverse-rate"))
        ratios.append(weighted[0] / plain[0])
        print(
            f"| {seed} | {plain[0]:.3f} | {weighted[0]:.3f} | {ratios[-1]:.3f} | {plain[1]:.3f} | {weighted[1]:.3f} |"
        )
    record(
        "participation.bias_ratio", float(np.median(ratios)), "<= 0.25", command="python benchmarks/participation.py",
        seconds=time.monotonic() - began, spread=(min(ratios), max(ratios)), seeds=SEEDS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
