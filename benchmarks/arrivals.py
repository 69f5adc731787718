"""Leave one client out, then let it join: does it find its own style by its embedding alone?

    python benchmarks/arrivals.py --data DIR

DIR is the folder of emoji that the preset emoji describes. Each style is dealt to two clients; z is that of the
embedded open_clip, and nothing is trained. Every client is left out once: right means that the nearest cluster is that
of its style and no other's, that it may use the cluster's adapter at once (reuse or align), and that the next grouping
has it there. Every style is left out once: right means that its first client is a cluster of its own, with an id not
used before. The point is about the preset's four styles; all styles of the folder have a point of their own, and some
of them are so near each other that the grouping itself takes them for one.
"""

import argparse
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from points import record

from fedsd import config as configuration
from fedsd.base import load
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.data.shares import layout_of
from fedsd.lowrank import Factor
from fedsd.privacy.style import image_embeddings
from fedsd.strategies import Settings, aggregate_round
from fedsd.strategies.arrivals import arrive
from fedsd.wire import Update

PRESET = Path(__file__).resolve().parent.parent / "conf" / "emoji.toml"
PER_STYLE, SEEDS = 2, 3
LORA = {"unet.to_q": Factor(np.ones((2, 1), np.float32), np.ones((1, 2), np.float32))}  # plays no role in routing


def embeddings(data: Path, styles: str) -> dict[str, np.ndarray]:
    """Return the embeddings (N, D) of each style's pictures, chosen as the preset does."""
    preset = configuration.flatten(tomllib.loads(PRESET.read_text()))
    flat = configuration.defaults() | preset | {"data.styles": styles or preset["data.styles"]}
    if styles == "all":
        flat["data.styles"] = ""
    examples, clip = read(data, layout_of(configuration.from_run_config(flat).data)), load.load_clip()
    return {
        style: image_embeddings(clip, pixels([e for e in examples if e.style == style], 64)).numpy()
        for style in sorted({example.style for example in examples})
    }


def clients_of(found: Mapping[str, np.ndarray], seed: int) -> dict[str, Update]:
    """Return clients <style>.<number>, each with a share of its style's pictures."""
    rng, clients = np.random.default_rng(seed), {}
    for style, embedded in found.items():
        for number, mine in enumerate(np.array_split(rng.permutation(len(embedded)), PER_STYLE)):
            z, name = embedded[mine].mean(axis=0), f"{style}.{number}"
            z = (z / np.linalg.norm(z)).astype(np.float32)
            clients[name] = Update(name, LORA, z, len(mine), 1, "abc123", 1.0, 0.5, 1.0, 50.0)
    return clients


def style_of(name: str) -> str:
    """Return the style of a client."""
    return name.partition(".")[0]


def joins_its_style(name: str, clients: Mapping[str, Update], settings: Settings) -> bool:
    """Leave the client out, then let it join."""
    one = clients[name]
    known = aggregate_round([other for key, other in clients.items() if key != name], None, settings, 1)
    found = arrive(one.z, one.n, known)
    company = {style_of(member) for member in known.clusters[found.cluster].members}
    after = aggregate_round([one], known, settings, 2)
    return found.kind != "new" and company == {style_of(name)} and after.clients[name].cluster == found.cluster


def opens_its_own(style: str, clients: Mapping[str, Update], settings: Settings) -> bool:
    """Leave the style out, then let one client of it join."""
    known = aggregate_round([one for key, one in clients.items() if style_of(key) != style], None, settings, 1)
    name = f"{style}.0"
    after = aggregate_round([clients[name]], known, settings, 2)
    cluster = after.clients[name].cluster
    return after.clusters[cluster].members == (name,) and cluster not in known.clusters


def measure(found: Mapping[str, np.ndarray]) -> tuple[float, float, float]:
    """Print a line per style; returns the shares of clients and of strangers that are right, and of both together."""
    settings, joined, opened = Settings(method="hdbscan"), {}, {}
    for seed in range(SEEDS):
        clients = clients_of(found, seed)
        for name in clients:
            joined.setdefault(style_of(name), []).append(joins_its_style(name, clients, settings))
        for style in found:
            opened.setdefault(style, []).append(opens_its_own(style, clients, settings))
    print("| style | left out and joins its own | never seen and opens its own |\n|---|---|---|")
    for style in found:
        counts = (f"{sum(right[style])} of {len(right[style])}" for right in (joined, opened))
        print(f"| {style} | {' | '.join(counts)} |")
    both = [[one for right in table.values() for one in right] for table in (joined, opened)]
    return float(np.mean(both[0])), float(np.mean(both[1])), float(np.mean(both[0] + both[1]))


def main() -> None:
    """Measure on the preset's styles and on all of them, and keep the points."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    opts = args.parse_args()
    command = "python benchmarks/arrivals.py --data DIR"
    for name, styles in (("arrivals.routed_right", ""), ("arrivals.routed_right_all_styles", "all")):
        began = time.monotonic()
        joined, opened, both = measure(embeddings(opts.data, styles))
        print(f"joined {joined:.3f}, opened {opened:.3f}")
        record(name, both, "= 1", command=command, seconds=time.monotonic() - began, seeds=SEEDS)


if __name__ == "__main__":
    main()
