"""A mixed fleet of eight nodes, two for each method: does what a node got back draw its own style?

    python benchmarks/mixed.py [--out DIR] [--pictures N] [--no-record]

Runs the preset `mixed` on the real engine, then draws for each node what it can draw: with what the server would send
it next, cut to its rank, and with what it keeps to itself (SPIRE's embedding). The KID of these pictures to the node's
own, by the embedded extractor, is held beside that of the untouched base, for the same captions and the same seeds.
The point is the number of nodes whose KID is below the base's.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from nodes import kept_by
from points import record
from section import table
from torch import nn

from fedsd.base import load
from fedsd.base.load import Base
from fedsd.base.training import Shared
from fedsd.cli import evaluate, sampling
from fedsd.cli.sampling import Finished
from fedsd.client_app import CACHE, private_root
from fedsd.data.images import pixels
from fedsd.lowrank import resize_lora
from fedsd.methods import spire
from fedsd.methods.table import METHODS, Place
from fedsd.metrics.distances import kid
from fedsd.metrics.features import extract, load_extractor
from fedsd.strategies.parts import of_parts, parts_by_method

COMMAND = "python benchmarks/mixed.py"


def run(folder: Path, more: list[str]) -> None:
    """Run the preset, unless the folder holds its run."""
    if (folder / "run.toml").exists():
        return
    sets = [f"node.private-dir={folder.parent / 'nodes'}", *more]
    settings = [part for text in sets for part in ("-s", text)]
    command = ["run", "--preset", "mixed", "--clients", "8", "--folder", str(folder), "--no-report", *settings]
    subprocess.run([sys.executable, "-m", "fedsd.cli.main", *command], check=True)


def held_by(done: Finished, client: str) -> tuple[Place, Shared]:
    """Return where a node draws, and what the server would send it for the next round."""
    config = done.config.of(client)
    cluster = f"cluster-{done.cluster_of[client]}"
    usable = parts_by_method(config.spire.form, config.spire.backbone)[config.method.name]
    lora, arrays = of_parts(usable, done.loras[cluster], done.arrays.get(cluster, {}))
    place = Place(config, config.lora.rank_of(int(client[1:])), private_root(config.node.private_dir) / CACHE)
    return place, Shared(resize_lora(lora, place.rank), arrays)


@contextmanager
def carried(done: Finished, base: Base, client: str) -> Iterator[tuple[Base, Place]]:
    """Within the block, the node's own model: what it got back, with what it keeps."""
    place, shared = held_by(done, client)
    if place.config.method.name != "spire":
        with METHODS[place.config.method.name].carried(base, shared, place) as model:
            yield model, place
        return
    own = kept_by(place.cache.parent, client)
    with spire.adapted(base, shared, spire.vector(shared, own)):
        yield base, place


def drawn(done: Finished, base: Base, client: str, prompts: list[str]) -> np.ndarray:
    """Return the node's pictures of the prompts, uint8 (N, H, W, 3)."""
    with carried(done, base, client) as (model, place):
        said = METHODS[place.config.method.name].written(model, place, prompts)
        return sampling.pictures(model, prompts, said=said)


def distance(net: nn.Module, real: torch.Tensor, made: np.ndarray) -> float:
    """Return the KID of pictures to features of real ones."""
    fake = extract(net, torch.from_numpy(made).permute(0, 3, 1, 2))
    return kid(real, fake, nn.Identity(), min(100, len(real), len(fake)), evaluate.SUBSETS).mean


def main() -> None:
    """Run, draw for each node, print the table, keep the point."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs") / "benchmark-mixed")
    args.add_argument("--pictures", type=int, default=48)
    args.add_argument("--no-record", action="store_true")
    args.add_argument("--set", "-s", action="append", default=[])
    opts = args.parse_args()
    began, out = time.monotonic(), opts.out.absolute()
    run(out / "run", opts.set)
    done, base = sampling.finished(out / "run"), load.load("tiny")
    net, rows, improved = load_extractor("embedded", load.load_clip()), [], 0
    for client, examples in sorted(done.examples.items()):
        captions = sorted(example.caption for example in examples)
        prompts = [captions[i % len(captions)] for i in range(opts.pictures)]
        real = extract(net, evaluate.as_bytes(pixels(examples, base.size)))
        before = distance(net, real, sampling.pictures(base, prompts))
        after = distance(net, real, drawn(done, base, client, prompts))
        improved += after < before
        rows.append(
            (client, done.config.of(client).method.name, done.style_of[client], f"{before:.4f}", f"{after:.4f}")
        )
        print(*rows[-1], flush=True)
    print(table(("node", "method", "style", "KID of the base", "KID of the node"), rows))
    if not opts.no_record:
        record("mixed.nodes_improved", improved, "= 8", command=COMMAND, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
