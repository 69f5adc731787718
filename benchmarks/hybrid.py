"""Hybrid inference with a real server process: exactness, the device's time, the server's cost, and load.

    python benchmarks/hybrid.py [tiny|sd15] [--parts handoff,saving,cost,load] [--engines local,ray] [--out DIR]

tiny: the embedded base on one thread of the processor. sd15: SD 1.5's size with random weights, which needs a GPU. Each
part writes its points and its section of docs/results/hybrid.md as soon as it is done. Device and server share the
machine, so leave it nothing else to do; but the hand-off is exact and no request lost on a busy one as well.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import many_devices
import sd15_base
import split_cost
import torch
from points import commit, machine, record
from section import table, write_section
from serving import random_adapter, run_folder, serving

from fedsd.base import load as loading
from fedsd.base.load import Base
from fedsd.lowrank import LoRA

Spread = tuple[float, float] | None
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


TITLES = {
    "handoff": "Hand-off", "saving": "The device's share", "cost": "One latent for N users",
    "load": f"{REQUESTS} requests at once",
}  # fmt: skip
NAMES = {"tiny": "embedded base", "sd15": "SD 1.5's size with random weights"}
SIZES = {"tiny": Size("hybrid", 20, 50, 25, 20, 3), "sd15": Size("hybrid.sd15", 10, 50, 5, 10, 3)}


@dataclass(frozen=True, eq=False)
class Bench:
    """One run of this benchmark: what is measured with, and how points and page name it."""

    size: Size
    name: str
    folder: Path
    base: Base
    neutral: LoRA
    personal: LoRA
    engines: list[str]
    recording: bool

    @contextmanager
    def pair(self, *options: str) -> Iterator[split_cost.Pair]:
        """Start a server, and end it with the block."""
        with serving(self.folder, "--timeout", "300", *options) as server:
            yield split_cost.Pair(self.base, self.neutral, self.personal, server)

    def keep(self, part: str, text: str, points: dict[str, tuple[float, str, Spread]], seconds: float) -> None:
        """Print a part's section; record its points and write it to the page, unless told not to."""
        about = f"`python benchmarks/hybrid.py {self.name} --parts {part}`, {machine()}, commit {commit()}."
        section = f"## {TITLES[part]}, {NAMES[self.name]}\n\n{text}\n\n{about}"
        print(section, flush=True)
        if not self.recording:
            return
        command = f"python benchmarks/hybrid.py {self.name} --parts {part}"
        for point, (value, target, spread) in points.items():
            record(f"{self.size.prefix}.{point}", value, target, command=command, seconds=seconds, spread=spread)
        write_section(PAGE, HEAD, f"{self.name}-{part}", section)


Part = tuple[str, dict[str, tuple[float, str, Spread]]]


def handoff(bench: Bench) -> Part:
    """What comes back over the wire, against a run that was never cut."""
    steps = bench.size.handoff_steps
    with bench.pair() as pair:
        found = split_cost.handoff_errors(pair, steps, tuple(round(tenths / 10 * steps) for tenths in range(1, 6)))
    points: dict[str, tuple[float, str, Spread]] = {}
    for encoding, target in (("float32", "= 0"), ("float16", "<= 3e-4")):
        errors = [by_encoding[encoding] for by_encoding in found.values()]
        points[f"handoff_fp{encoding[-2:]}"] = (max(errors), target, (min(errors), max(errors)))
    return _handoff_text(steps, found), points


def saving(bench: Bench) -> Part:
    """What the device saves, in time and in FLOPs."""
    size = bench.size
    with bench.pair() as pair:
        found = split_cost.savings(pair, size.saving_steps, SPLITS, size.saving_repeats)
    apart = [abs(saved.time - saved.flops) for saved in found.values()]
    return _saving_text(size, found), {"saved_minus_flops": (max(apart), "<= 0.02", (min(apart), max(apart)))}


def cost(bench: Bench) -> Part:
    """What one latent costs the server when N users share it, and how fast N devices are with it."""
    size = bench.size
    with bench.pair() as pair:
        early = round(0.3 * size.saving_steps)
        found = many_devices.cost_per_user(bench.base, pair.server, size.saving_steps, early, USERS, size.repeats)
        rates = {n: _rates(pair, n, size.load_steps) for n in size.devices}
    share = found[64].denoising / found[1].denoising
    return _cost_text(size, found, rates), {"server_cost_per_user_64": (share, "<= 0.02", None)}


def _rates(pair: split_cost.Pair, devices: int, steps: int) -> tuple[float, float]:
    with_server = many_devices.images_per_second(pair, devices, steps, round(0.3 * steps))
    return with_server, many_devices.images_per_second(pair, devices, steps, 0)


def load(bench: Bench) -> Part:
    """What either engine bears, and what becomes of the devices that it refuses."""
    size, loads, overloads = bench.size, {}, {}
    cut = round(0.3 * size.load_steps)
    for engine in bench.engines:
        with bench.pair("--engine", engine, "--queue", str(REQUESTS)) as pair:
            loads[engine] = many_devices.load(bench.base, pair.server, REQUESTS, size.load_steps, cut, size.repeats)
        with bench.pair("--engine", engine) as pair:
            overloads[engine] = many_devices.overload(pair, REQUESTS, size.load_steps, size.load_steps // 2)
    lost = sum(one["lost"] for one in overloads.values()) + sum(one.refused for one in loads.values())
    return _load_text(size, loads, overloads), {"lost_requests": (lost, "= 0", None)}


def _handoff_text(steps: int, found: dict[str, dict[str, float]]) -> str:
    rows = [[name, f"{e['float32']:.1g}", f"{e['float16']:.2g}"] for name, e in found.items()]
    return (
        f"‖x - x_uncut‖ / ‖x_uncut‖ over the wire, the largest of the splits 0.1 to 0.5 of {steps} steps, by "
        "what x_mid is sent in:\n\n" + table(["scheduler", "fp32", "fp16"], rows)
    )


def _saving_text(size: Size, found: dict[float, split_cost.Saving]) -> str:
    rows = [
        [split, f"{100 * s.flops:.1f} %", f"{100 * s.time:.1f} %", f"{100 * s.low:.1f} to {100 * s.high:.1f} %"]
        for split, s in found.items()
    ]
    head = ["split", "FLOPs saved", "time saved", "quartiles of single pictures"]
    return (
        f"Of all that a device computes for a picture of {size.saving_steps} steps (text encoder, U-Net, autoencoder, "
        f"asking), with rank {RANK} on every attention projection; time at its least of {size.saving_repeats} pictures "
        "each, drawn in turns:\n\n" + table(head, rows)
    )


def _cost_text(size: Size, found: dict[int, many_devices.Cost], rates: dict[int, tuple[float, float]]) -> str:
    one = found[1].denoising
    rows = [
        [n, f"{1000 * c.denoising:.2f} ms", f"{c.denoising / one:.4f}", f"{1 / n:.4f}", f"{1000 * c.cpu:.2f} ms"]
        for n, c in found.items()
    ]
    head = ["users", "denoising per user", "of one user's", "1 / N", "CPU of the whole server per user"]
    return (
        f"N users ask at once for the first 0.3 of {size.saving_steps} steps of one latent; from the server's "
        f"/metrics, median of {size.repeats}. The whole server also reads, checks and answers each request:\n\n"
        + table(head, rows)
        + f"\n\nPictures of {size.load_steps} steps finished per second by one server and N devices that share its "
        "latent, all on this machine:\n\n"
        + table(
            ["devices", "with the server, split 0.3", "without"],
            [[n, f"{shared:.2f}", f"{alone:.2f}"] for n, (shared, alone) in rates.items()],
        )
    )


def _load_text(size: Size, loads: dict[str, many_devices.Load], overloads: dict[str, Counter[str]]) -> str:
    rows = [
        [engine, f"{one.rate:.1f}", f"{one.p95:.2f} s", f"{one.sent:.0f} + {one.received:.0f}",
         *(overloads[engine][how] for how in ("served", "alone", "lost"))]
        for engine, one in loads.items()
    ]  # fmt: skip
    head = ["engine", "answers per second", "p95", "bytes, ask + answer", "served", "told 503, drawn alone", "lost"]
    return (
        f"First four columns: {REQUESTS} asks at once, each of its own seed, split 0.3 of {size.load_steps} steps, a "
        f"queue that holds them all, median of {size.repeats}. Last three: {REQUESTS} devices at once, split 0.5, with "
        "the queue of 16 that `fedsd serve` has by default; those told 503 with a Retry-After drew all steps "
        "themselves:\n\n" + table(head, rows)
    )


PARTS: dict[str, Callable[[Bench], Part]] = {"handoff": handoff, "saving": saving, "cost": cost, "load": load}


def main() -> None:
    """Measure the parts one after the other."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("size", choices=sorted(SIZES), nargs="?", default="tiny")
    args.add_argument("--parts", default=",".join(PARTS))
    args.add_argument("--engines", default="local,ray")
    args.add_argument("--out", type=Path, help="where SD 1.5 is kept; default a temporary folder")
    args.add_argument("--no-record", action="store_true")
    opts = args.parse_args()
    if opts.size == "sd15" and not torch.cuda.is_available():
        print("skipped: SD 1.5's size needs a GPU, and this machine has none")
        return
    with tempfile.TemporaryDirectory() as temporary:
        out = (opts.out or Path(temporary)).absolute()
        name = "tiny" if opts.size == "tiny" else str(sd15_base.save(out / "sd15"))
        base = loading.load(name)
        neutral, personal = random_adapter(base, RANK, 1), random_adapter(base, RANK, 2)
        folder = run_folder(Path(temporary) / "run", name, neutral)
        engines = opts.engines.split(",")
        bench = Bench(
            SIZES[opts.size], opts.size, folder, base, neutral, personal, engines, recording=not opts.no_record
        )
        for part in opts.parts.split(","):
            begun = time.monotonic()
            text, points = PARTS[part](bench)
            bench.keep(part, text, points, time.monotonic() - begun)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are ended as well
    if "sd15" not in sys.argv:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main()
