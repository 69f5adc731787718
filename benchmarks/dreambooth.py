"""DreamBooth's subjects (arXiv 2208.12242), a client each: SPIRE's embeddings and zeroth-order tokens, end to end.

    python benchmarks/dreambooth.py --data DIR [--out DIR] [--clients 30] [--rounds 1] [--steps 40] [--smoke]

DIR holds `index.csv` with the columns path, subject and class; a client has one subject's four to six photographs, and
says its class of them ("dog"). Two runs on the real engine, one after the other: SPIRE, whose clients share a backbone
and keep an embedding each; and tokens, which are averaged with nobody's (`strategy.name = "local"`), since a subject is
nobody else's. Then one picture of each subject is drawn by each method, of the same prompt and seed.

It shows that the way works for many clients of few pictures, and records no point: the embedded base was made from
emoji, and its autoencoder does not draw photographs.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from nodes import kept_by
from section import table
from styles import run

from fedsd.base import load
from fedsd.base.load import Base
from fedsd.cli import evaluate, grids, sampling
from fedsd.cli.sampling import Finished
from fedsd.data.images import pixels
from fedsd.methods import spire

DATA = {
    "data.index": "index.csv", "data.style-column": "subject", "data.label-column": "class",
    "data.caption-column": '""', "data.template": "{label}",
}  # fmt: skip
RUNS = {
    "spire": {"strategy.name": "everyone"},
    "zo-token": {"strategy.name": "local", "token.initial": "picture", "token.template": "{token} {caption}"},
}


def trained(method: str, opts: argparse.Namespace, out: Path) -> tuple[Finished, float]:
    """Run a method on all subjects unless it was run; returns its last round, and its seconds."""
    nodes = out / "nodes" / method
    size = {"run.rounds": opts.rounds, "train.steps": opts.steps, "train.batch-size": opts.batch_size}
    settings = DATA | RUNS[method] | size | {"lora.ranks": 4, "node.private-dir": nodes}
    if opts.subjects:
        settings["data.styles"] = opts.subjects
    told = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    more = ["--no-report", *told, *(part for text in opts.set for part in ("-s", text))]
    seconds = run(method, opts.data.absolute(), out / method, more, clients=opts.clients)
    return sampling.finished(out / method), seconds


def by_spire(done: Finished, base: Base, client: str, prompt: str) -> np.ndarray:
    """Return the picture (H, W, 3) of the shared backbone with the embedding that the client keeps."""
    own = kept_by(Path(done.config.node.private_dir), client)
    shared = done.shared("mix")
    with spire.adapted(base, shared, spire.vector(shared, own)):
        return sampling.pictures(base, [prompt])[0]


def by_token(done: Finished, base: Base, client: str, prompt: str) -> np.ndarray:
    """Return the picture (H, W, 3) that the client's own word gives."""
    with sampling.carried(done, base, done.shared(f"cluster-{done.cluster_of[client]}")) as paint:
        return paint([prompt])[0]


DRAWN = {"spire": by_spire, "zo-token": by_token}


def main() -> None:
    """Run both methods, draw each subject, and write the grid and the losses."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-dreambooth", help="new for new settings")
    args.add_argument("--clients", type=int, default=30)
    args.add_argument("--subjects", default="", help="some of them, with commas; then as many --clients")
    args.add_argument("--rounds", type=int, default=1)
    args.add_argument("--steps", type=int, default=40)
    args.add_argument("--batch-size", type=int, default=4)
    args.add_argument("--set", "-s", action="append", default=[])
    args.add_argument("--smoke", action="store_true", help="three subjects, two steps")
    opts = args.parse_args()
    if opts.smoke:
        vars(opts).update(clients=3, subjects="clock,dog,rc_car", steps=2, rounds=1)
    out, base, rows = opts.out.absolute(), load.load("tiny"), []
    runs = {method: trained(method, opts, out) for method in RUNS}
    done = runs["spire"][0]
    clients = sorted(done.examples, key=lambda client: done.style_of[client])
    first = [done.examples[client][0] for client in clients]
    real = evaluate.as_bytes(pixels(first, base.size)).permute(0, 2, 3, 1).numpy()
    sheet = [("real", list(real))]
    for method, (found, seconds) in runs.items():
        if {c: found.style_of[c] for c in clients} != {c: done.style_of[c] for c in clients}:
            raise SystemExit("the runs in --out dealt their subjects out otherwise; run into a new one")
        made = [DRAWN[method](found, base, c, e.caption) for c, e in zip(clients, first, strict=True)]
        sheet.append((method, made))
        told = [found.state["clients"][client] for client in clients]
        last, before = (float(np.mean([entry[key] for entry in told])) for key in ("loss_last", "loss_first"))
        rows.append([method, len(clients), f"{before:.4f}", f"{last:.4f}", f"{seconds:.0f}"])
    titles = [done.style_of[client].replace("_", " ") for client in clients]
    grids.save_grid(grids.grid(sheet, titles), out / "dreambooth.png", " | ".join(e.caption for e in first))
    print(table(["method", "subjects", "mean loss first", "last", "seconds"], rows))
    (out / "losses.json").write_text(json.dumps([dict(found.state["clients"]) for found, _ in runs.values()], indent=1))
    print(out / "dreambooth.png")


if __name__ == "__main__":
    main()
