"""Hybrid inference with a real server process: exactness, the device's time, the server's cost, and load.

    python benchmarks/hybrid.py [tiny|sd15] [--out DIR] [--engines local,ray] [--no-record]

tiny: the embedded base on one thread of the processor. sd15: SD 1.5's size with random weights, which needs a GPU. Writes
points and its section of docs/results/hybrid.md. Device and server share the machine, so leave it nothing else to do.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import many_devices
import sd15_base
import split_cost
import torch
from points import commit, machine, record
from section import table, write_section
from serving import random_adapter, run_folder, serving

from fedsd.base import load as loading

T = TypeVar("T")
PAGE, HEAD = "hybrid.md", "# Hybrid inference: what was measured"
RANK, REQUESTS, USERS, SPLITS = 16, 100, (1, 4, 16, 64), (0.2, 0.3)


@dataclass(frozen=True)
class Size:
    """How much is measured. prefix: of the points; steps: T of hand-off, saving, and load; repeats: of each timing."""

    prefix: str
    handoff_steps: int
    saving_steps: int
    saving_repeats: int
    load_steps: int
    repeats: int
    devices: tuple[int, ...] = (1, 4, 16)


SIZES = {"tiny": Size("hybrid", 20, 50, 25, 20, 3), "sd15": Size("hybrid.sd15", 10, 50, 5, 10, 3)}


@dataclass(frozen=True)
class Found:
    """All that one run of this benchmark measures; by engine where there are two."""

    handoff: dict[str, dict[str, float]]
    saving: dict[float, split_cost.Saving]
    cost: dict[int, many_devices.Cost]
    rates: dict[int, tuple[float, float]]
    load: dict[str, many_devices.Load]
    overload: dict[str, Counter[str]]


def measure(size: Size, base_name: str, engines: list[str], out: Path) -> Found:
    """Start the servers one after the other and measure each."""
    base = loading.load(base_name)
    neutral, personal = random_adapter(base, RANK, 1), random_adapter(base, RANK, 2)
    folder = run_folder(out / "run", base_name, neutral)
    cut = round(0.3 * size.load_steps)
    loads, overloads = {}, {}
    with serving(folder, "--timeout", "300") as server:
        pair = split_cost.Pair(base, neutral, personal, server)
        cuts = tuple(round(share / 10 * size.handoff_steps) for share in range(1, 6))
        handoff = said(split_cost.handoff_errors(pair, size.handoff_steps, cuts))
        saving = said(split_cost.savings(pair, size.saving_steps, SPLITS, size.saving_repeats))
        early = round(0.3 * size.saving_steps)
        cost = said(many_devices.cost_per_user(base, server, size.saving_steps, early, USERS, size.repeats))
        rates = said({n: _rates(pair, n, size.load_steps, cut) for n in size.devices})
    for engine in engines:
        with serving(folder, "--engine", engine, "--timeout", "300", "--queue", str(REQUESTS)) as server:
            loads[engine] = said(many_devices.load(base, server, REQUESTS, size.load_steps, cut, size.repeats))
        with serving(folder, "--engine", engine, "--timeout", "300") as server:
            pair = split_cost.Pair(base, neutral, personal, server)
            overloads[engine] = said(many_devices.overload(pair, REQUESTS, size.load_steps, size.load_steps // 2))
    return Found(handoff, saving, cost, rates, loads, overloads)


def _rates(pair: split_cost.Pair, devices: int, steps: int, server_steps: int) -> tuple[float, float]:
    with_server = many_devices.images_per_second(pair, devices, steps, server_steps)
    return with_server, many_devices.images_per_second(pair, devices, steps, 0)


def said(found: T) -> T:
    """Print what was found with the seconds since the start, and return it."""
    print(f"{time.process_time():5.0f} s of CPU  {found}", flush=True)
    return found


def keep(size: Size, found: Found, command: str, seconds: float) -> None:
    """Record the points."""

    def note(name: str, value: float, target: str, spread: tuple[float, float] | None = None) -> None:
        record(f"{size.prefix}.{name}", value, target, command=command, seconds=seconds, spread=spread)

    for encoding, target in (("float32", "= 0"), ("float16", "<= 3e-4")):
        errors = [by_encoding[encoding] for by_encoding in found.handoff.values()]
        note(f"handoff_fp{encoding[-2:]}", max(errors), target, (min(errors), max(errors)))
    apart = [abs(saving.time - saving.flops) for saving in found.saving.values()]
    note("saved_minus_flops", max(apart), "<= 0.02", (min(apart), max(apart)))
    note("server_cost_per_user_64", found.cost[64].denoising / found.cost[1].denoising, "<= 0.02")
    lost = sum(one["lost"] for one in found.overload.values()) + sum(one.refused for one in found.load.values())
    note("lost_requests", lost, "= 0")


def report(size: Size, name: str, found: Found) -> str:
    """Return the section of the page."""
    title = {"tiny": "The embedded base", "sd15": "SD 1.5's size, random weights"}[name]
    return "\n\n".join([
        f"## {title}",
        f"`python benchmarks/hybrid.py {name}`, {machine()}, commit {commit()}; the server is a process of its own on the same "
        "machine.",
        _handoff_text(size, found),
        _saving_text(size, found),
        _cost_text(size, found),
        _load_text(size, found),
    ])  # fmt: skip


def _handoff_text(size: Size, found: Found) -> str:
    rows = [[name, f"{e['float32']:.1g}", f"{e['float16']:.2g}"] for name, e in found.handoff.items()]
    return (
        f"**Hand-off.** ‖x - x_uncut‖ / ‖x_uncut‖ over the wire, the largest of the splits 0.1 to 0.5 of "
        f"{size.handoff_steps} steps:\n\n" + table(["scheduler", "fp32", "fp16"], rows)
    )


def _saving_text(size: Size, found: Found) -> str:
    rows = [
        [split, f"{100 * s.flops:.1f} %", f"{100 * s.time:.1f} %", f"{100 * s.low:.1f} to {100 * s.high:.1f} %"]
        for split, s in found.saving.items()
    ]
    head = ["split", "FLOPs saved", "time saved", "quartiles of single pictures"]
    return (
        f"**The device's share.** Of all that a device computes for a picture of {size.saving_steps} steps (text encoder, "
        f"U-Net, autoencoder, asking), with rank {RANK} on every attention projection; time at its least of "
        f"{size.saving_repeats} pictures each, drawn in turns:\n\n" + table(head, rows)
    )


def _cost_text(size: Size, found: Found) -> str:
    one = found.cost[1]
    rows = [
        [n, f"{1000 * c.denoising:.2f} ms", f"{c.denoising / one.denoising:.4f}", f"{1000 * c.cpu:.2f} ms", f"{1 / n:.4f}"]
        for n, c in found.cost.items()
    ]
    head = ["users", "denoising per user", "of one user's", "CPU of the whole server per user", "1 / N"]
    rates = [[n, f"{shared:.2f}", f"{alone:.2f}"] for n, (shared, alone) in found.rates.items()]
    return (
        f"**One latent for N users.** They ask at once for the first 0.3 of {size.saving_steps} steps; from the server's "
        f"/metrics, median of {size.repeats}. The whole server also reads, checks and answers each request:\n\n"
        + table(head, rows)
        + f"\n\nPictures of {size.load_steps} steps finished per second by one server and N devices that share its latent, "
        "all on this machine:\n\n"
        + table(["devices", "with the server, split 0.3", "without"], rates)
    )


def _load_text(size: Size, found: Found) -> str:
    rows = [
        [engine, f"{one.rate:.1f}", f"{one.p95:.2f} s", f"{one.sent:.0f} + {one.received:.0f}",
         *(found.overload[engine][how] for how in ("served", "alone", "lost"))]
        for engine, one in found.load.items()
    ]  # fmt: skip
    head = ["engine", "answers per second", "p95", "bytes, ask + answer", "served", "told 503, drawn alone", "lost"]
    return (
        f"**{REQUESTS} requests at once.** First four columns: each of its own seed, split 0.3 of {size.load_steps} steps, a "
        f"queue that holds them all, median of {size.repeats}. Last three: {REQUESTS} devices at once, split 0.5, with the "
        "queue of 16 that `fedsd serve` has by default; those told 503 with a Retry-After drew all steps themselves:\n\n"
        + table(head, rows)
    )


def main() -> None:
    """Measure, record, write the page."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("size", choices=sorted(SIZES), nargs="?", default="tiny")
    args.add_argument("--out", type=Path, help="where SD 1.5 and the servers' logs are kept; default a temporary folder")
    args.add_argument("--engines", default="local,ray")
    args.add_argument("--no-record", action="store_true")
    opts = args.parse_args()
    if opts.size == "sd15" and not torch.cuda.is_available():
        print("skipped: SD 1.5's size needs a GPU, and this machine has none")
        return
    begun, size = time.monotonic(), SIZES[opts.size]
    with tempfile.TemporaryDirectory() as temporary:
        out = opts.out or Path(temporary)
        base = "tiny" if opts.size == "tiny" else str(sd15_base.save(out.absolute() / "sd15"))
        found = measure(size, base, opts.engines.split(","), Path(temporary))
    text = report(size, opts.size, found)
    print(text)
    if not opts.no_record:
        keep(size, found, f"python benchmarks/hybrid.py {opts.size}", time.monotonic() - begun)
        write_section(PAGE, HEAD, opts.size, text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are ended as well
    if "sd15" not in sys.argv:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main()
