"""Uploads in int8 with error feedback beside float32: their bytes, and what the pictures of the clusters lose.

    python benchmarks/int8.py --realism SCRIPT [--preset NAME] [--data DIR] [--clients N] [-s key=value ...] [--out DIR]

Two federated runs of the same preset and seeds that differ in `wire.encoding` alone. Bytes are those of the events
`client.done`; KID is that of each style's cluster adapter against real pictures (held-out ones where there is an index,
else the clients' own), with the same prompts and seeds. Runs that are there already are not made again.
"""

import argparse
import json
import time
from pathlib import Path

from judge import Judge, write_pictures
from PIL import Image
from points import record
from styles import judge_pictures, run

from fedsd.base import load
from fedsd.cli import evaluate, sampling

ENCODINGS = ("float32", "int8")


def bytes_of(folder: Path) -> int:
    """Return the bytes of all uploads that the run's events count."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return sum(event["bytes"] for event in events if event["event"] == "client.done")


def kids_of(folder: Path, judge: Judge, pictures: int, steps: int) -> dict[str, float]:
    """Return KID x 1000 of the cluster's adapter for each style."""
    done, found = sampling.finished(folder), {}
    base, where = load.load(done.config.base.name), "split=heldout" if done.config.data.index else ""
    for style in sorted(set(done.style_of.values())):
        prompts = evaluate.prompts_of(done, style, pictures)
        made = sampling.sample(base, evaluate.adapter_of(done, "cluster", style), prompts, steps=steps)
        shown = write_pictures([Image.fromarray(one) for one in made], folder / "pictures" / style)
        found[style] = float(judge.kid(judge_pictures(judge, done, style, where), judge.features(shown))[0])
    return found


def main() -> None:
    """Run both, draw, judge and record."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--preset", default="demo")
    args.add_argument("--data", type=Path)
    args.add_argument("--clients", type=int, default=8)
    args.add_argument("--pictures", type=int, default=160, help="of each style and run")
    args.add_argument("--denoise", type=int, default=12, help="denoising steps")
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-int8")
    args.add_argument("--no-record", action="store_true")
    args.add_argument("--set", "-s", action="append", default=[])
    opts = args.parse_args()
    judge, begun, size, kid = Judge(opts.realism), time.monotonic(), {}, {}
    for encoding in ENCODINGS:
        folder = opts.out.absolute() / encoding
        more = [part for text in [*opts.set, f"wire.encoding={encoding}"] for part in ("-s", text)]
        run(opts.preset, opts.data, folder, more, opts.clients)
        size[encoding], kid[encoding] = bytes_of(folder), kids_of(folder, judge, opts.pictures, opts.denoise)
        print(encoding, size[encoding], json.dumps(kid[encoding]), flush=True)
    share = size["int8"] / size["float32"]
    worst = max(kid["int8"][style] / kid["float32"][style] for style in kid["float32"])
    print(f"bytes {share:.4f}, KID {worst:.4f} in the worst cluster")
    if not opts.no_record:
        data = " --data DIR" if opts.data else ""
        command = f"python benchmarks/int8.py --realism SCRIPT --preset {opts.preset}{data}"
        seconds = time.monotonic() - begun
        record("wire.int8_bytes", share, "<= 0.26", command=command, seconds=seconds)
        record("wire.int8_kid_ratio", worst, "<= 1.02", command=command, seconds=seconds)


if __name__ == "__main__":
    main()
