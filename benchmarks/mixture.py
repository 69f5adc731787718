"""Draw SPIRE's theorem: descent on the diffusion loss finds a mixture's weight, in any dimension, from any start.

    python benchmarks/mixture.py
    python benchmarks/mixture.py --plot docs/results/mixture.png

Two Gaussians at ±mu, |mu| = 1.5, weight 0.8. The error is the root mean square over seeds.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import points

from fedsd.methods.mixture import mixing_weight, sample

W, LENGTH, TIMES = 0.8, 1.5, (0.1, 0.3, 0.5)
SIZES, DIMENSIONS, STARTS = (250, 1000, 4000, 16_000), (2, 32, 512), (0.05, 0.3, 0.5, 0.95)
COMMAND = "python benchmarks/mixture.py"


def estimate(n: int, d: int, seed: int, start: float = 0.5) -> float:
    """Estimate the weight from n samples in d dimensions."""
    mu = np.full(d, LENGTH / d**0.5)
    return mixing_weight(sample(n, mu, W, np.random.default_rng([seed, d])), mu, TIMES, start=start, seed=seed)


def error(n: int, d: int, seeds: int) -> float:
    """Return the root mean square of the estimate's error over seeds."""
    return float(np.sqrt(np.mean([(estimate(n, d, seed) - W) ** 2 for seed in range(seeds)])))


def plot(file: Path, errors: dict[int, list[float]]) -> None:
    """Draw error against samples, a line for each dimension and one of slope -1/2."""
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for d, found in errors.items():
        axes.loglog(SIZES, found, marker="o", label=f"d = {d}")
    reference = errors[DIMENSIONS[0]][0] * np.sqrt(SIZES[0] / np.array(SIZES))
    axes.loglog(SIZES, reference, "--", color="grey", label=r"$n^{-1/2}$")
    axes.set(xlabel="samples n", ylabel="error of the mixing weight", title="The error falls with n, whatever d is")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    begun = time.perf_counter()
    errors = {d: [error(n, d, chosen.seeds) for n in SIZES] for d in DIMENSIONS}
    for d, found in errors.items():
        print(f"d = {d:4}  " + "  ".join(f"n = {n}: {e:.4f}" for n, e in zip(SIZES, found, strict=True)))
    found = [estimate(4000, 32, 0, start) for start in STARTS]
    seconds = time.perf_counter() - begun
    at_4000 = [errors[d][SIZES.index(4000)] for d in DIMENSIONS]
    shared = {"command": COMMAND, "seconds": seconds}
    points.record("spire.mixture_error", max(at_4000), "<= 0.03", seeds=chosen.seeds, **shared)
    points.record("spire.mixture_start_spread", max(found) - min(found), "<= 0.0001", **shared)
    points.record("spire.mixture_dimension_ratio", max(at_4000) / min(at_4000), "<= 2", seeds=chosen.seeds, **shared)
    if chosen.plot:
        plot(chosen.plot, errors)


if __name__ == "__main__":
    main()
