"""Time what the server computes from one round's updates, beside the algorithms of other projects.

    python benchmarks/aggregate.py

Stable Diffusion 1.5's 176 layers, 8 clients of ranks 4, 4, 8, 8, 16, 16, 32 and 64, float32. The other algorithms are
our own implementations of what their code does, without its overheads:

    dense       Σ w B A as a matrix, its SVD, cut (PEFT's add_weighted_adapter, FlexLoRA, Chorus)
    florist     SVD of the stacked B, of the stacked A, and of the core (FLoRIST)
    nvflare     √w on both sides, thin QR, SVD of the core (NVFlare's HLoRA example)
    flower      Flower's FedAvg itself, on 8 clients of rank 16, from records to a record

Seconds of CPU time count, as other processes may share the machine; wall time is shown beside. The dense algorithm is
timed on one layer of each of the 7 shapes and multiplied by how often the shape occurs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import points
import sd15
from scipy import linalg

from fedsd.lowrank import LoRA, singular_values, stack
from fedsd.strategies.rules import RULES
from fedsd.wire import lora_record, parse_lora

RANKS = (4, 4, 8, 8, 16, 16, 32, 64)
WEIGHTS = (30, 50, 20, 40, 60, 30, 50, 40)
RANK = 8  # the lower middle one, at which a cluster's adapter is kept
SHARES = [w / sum(WEIGHTS) for w in WEIGHTS]
Layer = Callable[[str, list[LoRA]], Any]


def stacked(layer: str, loras: list[LoRA]) -> tuple[np.ndarray, np.ndarray]:
    """The stacked B, and A with the weights in it."""
    factor = stack([lora[layer] for lora in loras], SHARES)
    return factor.B, factor.A


def svd(matrix: np.ndarray, **options: Any) -> Any:
    """Compute by LAPACK's gesdd, through scipy, which is faster here than through numpy."""
    return linalg.svd(matrix, check_finite=False, **options)


def dense(layer: str, loras: list[LoRA]) -> np.ndarray:
    """Return the singular values of the dense mean, after its cut."""
    total = sum(np.float32(w) * lora[layer].B @ lora[layer].A for w, lora in zip(SHARES, loras, strict=True))
    U, S, Vt = svd(total, full_matrices=False)
    _ = U[:, :RANK] * S[:RANK], Vt[:RANK]
    return S


def florist(layer: str, loras: list[LoRA]) -> np.ndarray:
    """Return those of FLoRIST's core, after its cut."""
    B, A = stacked(layer, loras)
    U_B, S_B, V_B = svd(B, full_matrices=False)
    U_A, S_A, V_A = svd(A, full_matrices=False)
    U, S, Vt = svd((S_B[:, None] * V_B) @ (U_A * S_A), full_matrices=False)
    _ = U_B @ U[:, :RANK] * S[:RANK], Vt[:RANK] @ V_A
    return S


def nvflare(layer: str, loras: list[LoRA]) -> np.ndarray:
    """Return those of NVFlare's core, after its cut."""
    root = np.sqrt(np.float32(SHARES))
    B = np.concatenate([s * lora[layer].B for s, lora in zip(root, loras, strict=True)], axis=1)
    A = np.concatenate([s * lora[layer].A for s, lora in zip(root, loras, strict=True)], axis=0)
    Q_B, R_B = linalg.qr(B, mode="economic", check_finite=False)
    Q_A, R_A = linalg.qr(A.T, mode="economic", check_finite=False)
    U, S, Vt = svd(R_B @ R_A.T)
    _ = Q_B @ U[:, :RANK], S[:RANK, None] * (Vt[:RANK] @ Q_A.T)
    return S


def timed(work: Callable[[], Any], repeats: int) -> dict[str, list[float]]:
    """CPU and wall seconds of each repeat, after one that does not count."""
    work()
    cpu, wall = [], []
    for _ in range(repeats):
        before, began = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - before)
        wall.append(time.perf_counter() - began)
    return {"cpu": cpu, "wall": wall}


def by_shape(work: Layer, loras: list[LoRA]) -> dict[str, list[float]]:
    """One layer of each shape, times how often it occurs."""
    count, first = Counter(sd15.shapes().values()), {}
    for layer, shape in sd15.shapes().items():
        first.setdefault(shape, layer)
    total = {"cpu": 0.0, "wall": 0.0}
    for shape, layer in first.items():
        before, began = time.process_time(), time.perf_counter()
        work(layer, loras)
        total["cpu"] += count[shape] * (time.process_time() - before)
        total["wall"] += count[shape] * (time.perf_counter() - began)
    return {key: [value] for key, value in total.items()}


def everywhere(work: Layer, loras: list[LoRA]) -> Callable[[], None]:
    """Return a function that does the work on all layers."""

    def run() -> None:
        for layer in loras[0]:
            work(layer, loras)

    return run


def read_once(loras: list[LoRA]) -> None:
    """The floor: every number of every update is read."""
    for lora in loras:
        for factor in lora.values():
            factor.B.sum()
            factor.A.sum()


def flower(records: list[Any]) -> Any:
    """Return what Flower's FedAvg makes of the clients' records."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    return aggregate_arrayrecords(records, "num-examples")


def spectrum_error(loras: list[LoRA]) -> float:
    """Largest difference of our singular values from the dense float64 ones, as a share of the largest.

    Of the whole spectrum, and of the adapter that the rule returns.
    """
    worst = 0.0
    for layer in ("unet.320.0.attn2.to_k", "unet.640.0.attn1.to_q", "text_encoder.0.q_proj"):
        factors = [lora[layer] for lora in loras]
        exact = sum(w * f.B.astype(np.float64) @ f.A.astype(np.float64) for w, f in zip(SHARES, factors, strict=True))
        S, found = svd(exact, compute_uv=False), singular_values(stack(factors, SHARES))
        kept = singular_values(RULES["flexlora"].combine([{layer: f} for f in factors], WEIGHTS, RANK).lora[layer])
        worst = max(worst, *(float(np.abs(ours - S[: len(ours)]).max() / S[0]) for ours in (found, kept)))
    return worst


def measure(repeats: int) -> dict[str, Any]:
    """All figures with the threads that this process was given."""
    from flwr.app import MetricRecord, RecordDict

    loras = [sd15.adapter(rank, seed) for seed, rank in enumerate(RANKS)]
    equal = [sd15.adapter(16, seed) for seed in range(8)]
    records = [
        RecordDict({"arrays": lora_record(lora), "metrics": MetricRecord({"num-examples": n})})
        for lora, n in zip(equal, WEIGHTS, strict=True)
    ]

    def ours_from_records() -> Any:
        found = RULES["fedit"].combine([parse_lora(record["arrays"]) for record in records], WEIGHTS)  # type: ignore[arg-type]
        return lora_record(found.lora)

    names = [name for name, entry in RULES.items() if not entry.one_rank]
    return {
        "floor": timed(lambda: read_once(loras), repeats),
        "floor, rank 16": timed(lambda: read_once(equal), repeats),
        "rules": {name: timed(lambda n=name: RULES[n].combine(loras, WEIGHTS, RANK), repeats) for name in names},
        "fedit, rank 16": timed(lambda: RULES["fedit"].combine(equal, WEIGHTS), repeats),
        "fedit, rank 16, records": timed(ours_from_records, repeats),
        "flower, rank 16, records": timed(lambda: flower(records), repeats),
        "florist": timed(everywhere(florist, loras), repeats),
        "nvflare": timed(everywhere(nvflare, loras), repeats),
        "dense": by_shape(dense, loras),
        "spectrum_error": spectrum_error(loras),
    }


def child(threads: int, repeats: int) -> dict[str, Any]:
    """`measure` in a process of its own with so many threads."""
    env = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    env["OPENBLAS_THREAD_TIMEOUT"] = "10"  # numpy's and scipy's threads else spin against each other for 2^26 cycles
    command = [sys.executable, __file__, "--measure", "--repeats", str(repeats)]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def shown(threads: int, found: dict[str, Any]) -> str:
    """The figures as a Markdown table: seconds, and times the floor."""
    rows = {f"our {name}": entry for name, entry in found["rules"].items()}
    rows |= {name: found[name] for name in ("dense", "florist", "nvflare")}
    rows |= {name: found[name] for name in found if "rank 16" in name and "floor" not in name}
    floors = {False: np.median(found["floor"]["cpu"]), True: np.median(found["floor, rank 16"]["cpu"])}
    lines = [f"| {threads} thread{'s' * (threads > 1)} | CPU s | wall s | times the floor (CPU) |", "|---|---|---|---|"]
    lines += [f"| read all updates once | {floors[False]:.3f} | {np.median(found['floor']['wall']):.3f} | 1 |"]
    for name, entry in rows.items():
        cpu, wall = float(np.median(entry["cpu"])), float(np.median(entry["wall"]))
        lines.append(f"| {name} | {cpu:.3f} | {wall:.3f} | {cpu / floors['rank 16' in name]:.1f} |")
    return "\n".join(lines)


def write_points(found: dict[str, Any], seconds: float) -> None:
    """Write the three points, of the run with one thread."""

    def note(name: str, values: list[float], target: str) -> None:
        points.record(
            name, float(np.median(values)), target, command="python benchmarks/aggregate.py", seconds=seconds,
            spread=(min(values), max(values)),
        )  # fmt: skip

    ours = found["rules"]["flexlora"]["cpu"]
    note("agg.speedup_dense", [found["dense"]["cpu"][0] / mine for mine in ours], ">= 20")
    note(
        "agg.speedup_three_svd",
        [other / mine for other, mine in zip(found["florist"]["cpu"], ours, strict=True)],
        ">= 2",
    )
    floor = float(np.median(found["floor"]["cpu"]))
    note("agg.time_over_floor", [mine / floor for mine in ours], "<= 5")
    ratio = [
        o / f
        for o, f in zip(found["fedit, rank 16, records"]["cpu"], found["flower, rank 16, records"]["cpu"], strict=True)
    ]
    note("agg.time_over_flower", ratio, "<= 1")
    note("agg.spectrum_error", [found["spectrum_error"]], "<= 1e-5")


def main() -> None:
    """Measure with 1 and 2 threads, print the tables, keep the points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="print the figures of this process as JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, help="write the tables to this file")
    opts = parser.parse_args()
    if opts.measure:
        print(json.dumps(measure(opts.repeats)))
        return
    began = time.monotonic()
    tables = []
    for threads in (1, 2):
        found = child(threads, opts.repeats)
        tables.append(shown(threads, found))
        print(tables[-1], end="\n\n", flush=True)
        if threads == 1:
            write_points(found, time.monotonic() - began)
    if opts.page:
        opts.page.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
