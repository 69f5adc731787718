"""Figure 5 on real pictures: the server with the neutral adapter against the server with the plain base.

    python benchmarks/fig5.py RUN --emoji DIR --realism SCRIPT [--out DIR] [--styles A,B] [--steps 20] [--grid ...]

RUN is a folder of `fedsd run --preset emoji`, maybe neutralised. For each of its styles the server makes the first 0.2
or 0.3 of the steps with mixLoras times the neutral adapter (0: the plain base), and the device the rest with local
scale times the style's cluster adapter; both read the same prompt. KID and FID against held-out pictures of the style,
with 100 pictures on the whole grid of mixLoras and local scale and with 500 on a part of it. x_mid does not depend on
the local scale, so it is made once for all of them. What was drawn is kept in --out, and a second call goes on from
there. Writes points, heat maps and a section of docs/results/hybrid.md.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fig5_map import Cell, Score, draw_maps
from judge import Judge, write_pictures
from PIL import Image
from points import commit, given, machine, record
from section import RESULTS, table, write_section

from fedsd.base import adapters, denoise, load
from fedsd.base.load import Base
from fedsd.cli import evaluate, sampling
from fedsd.cli.run_config import read_config
from fedsd.data.images import pixels
from fedsd.hybrid.neutral import load_neutral, lora_sha
from fedsd.store import RunFolder

PAGE, HEAD = "hybrid.md", "# Hybrid inference: what was measured"
GRIDS = ("100:0.7,0.85,1.0:0.75,0.85,0.95", "500:1.0:0.95")  # 500 where the paper found its best
PART = 100  # pictures that are drawn and kept together
PLAIN = 0.0  # mixLoras of a server without the neutral adapter


@dataclass(frozen=True)
class Grid:
    """Which cells have `count` pictures, besides those of the plain base."""

    count: int
    mixes: tuple[float, ...]
    locals: tuple[float, ...]


def grid(text: str) -> Grid:
    """Return what COUNT:MIX,MIX:LOCAL,LOCAL says; ArgumentTypeError where a count is no number of whole parts."""
    count, mixes, locals_ = text.split(":")
    if int(count) % PART or int(count) == 0:
        raise argparse.ArgumentTypeError(f"{count} pictures are no multiple of {PART}, which are kept together")
    return Grid(int(count), tuple(map(float, mixes.split(","))), tuple(map(float, locals_.split(","))))


@dataclass(frozen=True)
class Job:
    """One part of a style's pictures at one split and mixLoras, for all local scales: the unit that is kept."""

    style: str
    split: float
    mix: float
    part: int
    locals: tuple[float, ...]

    def file(self, out: Path, local: float) -> Path:
        """Where the features of its pictures at a local scale are kept, (PART, D)."""
        return out / "features" / self.style / f"{self.split}-{self.mix}-{local}-{self.part}.npy"


@dataclass(frozen=True)
class Study:
    """What a worker needs to know of all jobs. out: what was drawn is kept below it, by the SHA-256 of all weights."""

    run: Path
    emoji: Path
    realism: Path
    out: Path
    steps: int


def finished(study: Study) -> sampling.Finished:
    """Return the run's last round, with its pictures where they are now."""
    config = read_config(study.run)
    config = replace(config, data=replace(config.data, root=str(study.emoji)))
    folder = RunFolder(study.run)
    latest = folder.latest_round()
    if latest is None:
        raise SystemExit(f"{study.run} has no complete round")
    state, loras = folder.load_round(latest)
    return sampling.Finished(folder, config, state, loras, sampling.holdings(config, list(state["clients"])))


class Worker:
    """One process's base, run and judge."""

    def __init__(self, study: Study) -> None:
        torch.set_num_threads(1)
        self.study, self.judge, self.done = study, Judge(study.realism), finished(study)
        self.base: Base = load.load(self.done.config.base.name)
        self.neutral = load_neutral(study.run, int(str(self.done.state["round"])))
        self.styles = sorted(set(self.done.style_of.values()))
        clusters = [lora_sha(evaluate.adapter_of(self.done, "cluster", style)) for style in self.styles]
        parts = [self.base.sha, self.neutral.sha, *clusters, str(study.steps)]
        self.out = study.out / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]

    def draw(self, job: Job) -> None:
        """Draw and judge what of the job is not kept yet."""
        missing = [local for local in job.locals if not job.file(self.out, local).exists()]
        if not missing:
            return
        prompts = evaluate.prompts_of(self.done, job.style, (job.part + 1) * PART)[job.part * PART :]
        seeds = [sampling.seed_of(prompt, job.part * PART + i) for i, prompt in enumerate(prompts)]
        cut = denoise.Split(self.study.steps, round(job.split * self.study.steps), sampling.GUIDANCE)
        halves = [(prompts[i : i + 50], seeds[i : i + 50]) for i in range(0, PART, 50)]
        with torch.no_grad(), adapters.adapted(self.base, self.neutral.lora):
            adapters.set_scale(self.base, job.mix)
            mids = [denoise.early(self.base, denoise.encode_batch(self.base, *half), cut) for half in halves]
        cluster = evaluate.adapter_of(self.done, "cluster", job.style)
        for local in missing:
            with torch.no_grad(), adapters.adapted(self.base, cluster):
                adapters.set_scale(self.base, local)
                done = [self._finished(x_mid, half, cut) for x_mid, half in zip(mids, halves, strict=True)]
            file = job.file(self.out, local)
            made = write_pictures(
                [Image.fromarray(picture) for picture in np.concatenate(done)],
                self.out / "pictures" / job.style / file.stem,
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file.with_suffix(".part.npy"), self.judge.features(made).astype(np.float32))
            file.with_suffix(".part.npy").replace(file)

    def _finished(self, x_mid: torch.Tensor, half: tuple[list[str], list[int]], cut: denoise.Split) -> np.ndarray:
        """Return the pictures of x_mid as the wire carries it, in float16."""
        batch = denoise.encode_batch(self.base, *half)
        return denoise.decode_latents(self.base, denoise.late(self.base, x_mid.half().float(), batch, cut))

    def real(self, style: str) -> np.ndarray:
        """Return the features of the held-out pictures of a style at the base's own size."""
        kept = [part for part in self.done.config.data.where.split(";") if not part.startswith("split=")]
        examples = evaluate.real_pictures(self.done, style, ";".join(["split=heldout", *kept]))
        unit = pixels(examples, self.base.size)
        shown = ((unit.transpose(0, 2, 3, 1) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            return self.judge.features(write_pictures([Image.fromarray(picture) for picture in shown], Path(folder)))


def jobs(styles: Sequence[str], splits: Sequence[float], grids: Sequence[Grid]) -> list[Job]:
    """Return all that has to be drawn, the first grid first."""
    wanted: dict[tuple[int, str, float, float], set[float]] = {}
    for one in grids:
        for part, style, split in itertools.product(range(one.count // PART), styles, splits):
            for mix in (PLAIN, *one.mixes):
                wanted.setdefault((part, style, split, mix), set()).update(one.locals)
    return [
        Job(style, split, mix, part, tuple(sorted(locals_))) for (part, style, split, mix), locals_ in wanted.items()
    ]


_worker: Worker


def _start(study: Study) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Worker(study)


def _work(job: Job) -> Job:
    _worker.draw(job)
    return job


def draw_all(study: Study, todo: list[Job], processes: int) -> None:
    """Draw all jobs, each process with one thread."""
    begun = time.monotonic()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (study,))
    try:
        for i, job in enumerate(as_completed([pool.submit(_work, job) for job in todo])):
            print(f"{time.monotonic() - begun:5.0f} s  {i + 1}/{len(todo)}  {job.result()}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # what is being drawn is finished and kept


def scores(worker: Worker, styles: Sequence[str], splits: Sequence[float], grids: Sequence[Grid]) -> Iterator[Score]:
    """Yield KID and FID of every cell, of the neutral adapter and of the plain base that it stands against."""
    for style in styles:
        real = worker.real(style)
        for one in grids:
            for split, mix, local in itertools.product(splits, (PLAIN, *one.mixes), one.locals):
                parts = [Job(style, split, mix, part, ()) for part in range(one.count // PART)]
                files = [part.file(worker.out, local) for part in parts]
                fake = np.concatenate([np.load(file) for file in files]).astype(np.float64)
                kid, fid = worker.judge.kid(real, fake)[0], worker.judge.fid(real, fake)
                yield Score(Cell(style, one.count, split, mix, local), float(kid), fid)


def pairs(found: list[Score]) -> list[tuple[Score, Score]]:
    """Return each cell with the neutral adapter beside the one of the plain base that differs in nothing else."""
    plain = {score.cell: score for score in found if score.cell.mix == PLAIN}
    return [(score, plain[replace(score.cell, mix=PLAIN)]) for score in found if score.cell.mix != PLAIN]


def report(found: list[Score], study: Study, figures: dict[int, str]) -> str:
    """Return the section of the page."""
    rows = []
    for count, style in sorted({(score.cell.count, score.cell.style) for score in found}):
        mine = [(a, b) for a, b in pairs(found) if (a.cell.count, a.cell.style) == (count, style)]
        kid, fid = (sum(getattr(a, k) < getattr(b, k) for a, b in mine) for k in ("kid", "fid"))
        ours, base = max(mine, key=lambda pair: 1 - pair[0].fid / pair[1].fid)
        cell, gain = ours.cell, 1 - ours.fid / base.fid
        rows.append([
            style, count, f"{kid} of {len(mine)}", f"{fid} of {len(mine)}", f"{ours.fid:.0f} / {base.fid:.0f}",
            f"{100 * gain:.0f} %", f"{cell.split}, {cell.mix}, {cell.local}",
        ])  # fmt: skip
    head = ["style", "pictures", "KID lower", "FID lower", "best FID / plain base", "gain", "at split, mixLoras, local"]
    about = (
        f"`python benchmarks/fig5.py RUN --emoji DIR --realism SCRIPT`, {machine()}, commit {commit()}: "
        f"{study.steps} steps, KID x 1000 and Fréchet distance by a MobileNetV2 trained on photographs, against "
        "held-out pictures of the style. The Fréchet distance of so few pictures in 1280 features is biased upwards "
        "and can be compared at one count only; KID is not."
    )
    maps = "\n\n".join(f"![Heat maps of {count} pictures a cell]({file})" for count, file in figures.items())
    return f"## Figure 5: neutral adapter or plain base on the server\n\n{about}\n\n{table(head, rows)}\n\n{maps}"


def keep(found: list[Score], command: str, seconds: float) -> None:
    """Record the points: a cell is better when both its KID and its FID are lower; the gain is the paper's, of FID."""
    compared = pairs(found)
    better = [ours.kid < base.kid and ours.fid < base.fid for ours, base in compared]
    gains = [1 - ours.fid / base.fid for ours, base in compared]
    record("hybrid.fig5_cells_better", float(np.mean(better)), "= 1", command=command, seconds=seconds)
    spread = (min(gains), max(gains))
    record("hybrid.fig5_best_gain", max(gains), ">= 0.4", command=command, seconds=seconds, spread=spread)


def main() -> None:
    """Draw what is missing, judge, record, write maps and page."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("run", type=Path)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs/benchmark-fig5"))
    args.add_argument("--styles", default="", help="some of the run's styles, with commas; default all")
    args.add_argument("--splits", type=float, nargs="+", default=[0.2, 0.3])
    args.add_argument(
        "--grid", type=grid, nargs="+", default=[grid(text) for text in GRIDS], metavar="COUNT:MIXES:LOCALS"
    )
    args.add_argument("--steps", type=int, default=sampling.STEPS)
    args.add_argument("--processes", type=int, default=2, help="each with one thread")
    args.add_argument("--no-record", action="store_true", help="write no points and no page; maps go to --out")
    opts = args.parse_args()
    begun = time.monotonic()
    run, emoji, realism, out = (path.absolute() for path in (opts.run, opts.emoji, opts.realism, opts.out))
    worker = Worker(study := Study(run, emoji, realism, out, opts.steps))
    styles = opts.styles.split(",") if opts.styles else worker.styles
    if unknown := set(styles) - set(worker.styles):
        raise SystemExit(f"the run has no style {', '.join(unknown)}; it has {', '.join(worker.styles)}")
    draw_all(study, jobs(styles, opts.splits, opts.grid), opts.processes)
    found = list(scores(worker, styles, opts.splits, opts.grid))
    (worker.out / "scores.json").write_text(
        json.dumps([{**vars(s.cell), "kid": s.kid, "fid": s.fid} for s in found], indent=1)
    )
    where = worker.out if opts.no_record else RESULTS
    figures = {one.count: f"fig5-{one.count}.png" for one in opts.grid}
    for count, name in figures.items():
        draw_maps([score for score in found if score.cell.count == count], where / name)
    text = report(found, study, figures)
    print(text)
    if not opts.no_record:
        command = "python benchmarks/fig5.py RUN --emoji DIR --realism SCRIPT"
        keep(found, command + given("--styles", "--splits", "--grid", "--steps"), time.monotonic() - begun)
        write_section(PAGE, HEAD, "fig5", text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the other processes are ended as well
    main()
