"""A client joins later and finds its own style by its embedding alone: on drawn pictures, and on emoji where there are.

The emoji are looked for in the folder that FEDSD_TEST_DATA names, or beside the repository.
"""

import os
import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from fedsd import config as configuration
from fedsd.base.load import load_clip
from fedsd.data import drawn
from fedsd.data.example import Layout
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.data.shares import layout_of
from fedsd.lowrank import Factor
from fedsd.privacy.key import turn
from fedsd.privacy.style import style_embedding
from fedsd.strategies import Settings, aggregate_round
from fedsd.strategies.arrivals import arrive, start_of
from fedsd.wire import Update

ROOT = Path(__file__).resolve().parents[2]
EMOJI = Path(os.environ.get("FEDSD_TEST_DATA", ROOT.parent / "shared" / "data")) / "emoji"
SETTINGS = Settings(method="hdbscan")


@lru_cache
def clients_of(source: str, cache: Path) -> dict[str, Update]:
    """Two clients for each style, named <style>.<number>; each has every other picture."""
    if source == "emoji":
        flat = configuration.defaults() | configuration.flatten(tomllib.loads((ROOT / "conf/emoji.toml").read_text()))
        examples = read(EMOJI, layout_of(configuration.from_run_config(flat).data))
    else:
        drawn.write(cache, drawn.STYLES, 120, 0, objects=drawn.OBJECTS)
        examples = read(cache, Layout())
    found = {}
    for style in sorted({example.style for example in examples}):
        pictures = [example for example in examples if example.style == style]
        for number in range(2):
            mine, seed = pictures[number::2], len(found)
            rng = np.random.default_rng(seed)
            B, A = rng.standard_normal((2, 5, 1)).astype(np.float32)
            z = style_embedding(load_clip(), pixels(mine, 64))
            name = f"{style}.{number}"
            found[name] = Update(name, {"q": Factor(B, A.T.copy())}, z, len(mine), 1, "abc123", 1.0, 0.5, 1.0, 50.0)
    return found


@pytest.fixture(scope="module", params=["emoji", "drawn"])
def clients(request, tmp_path_factory) -> dict[str, Update]:
    if request.param == "emoji" and not EMOJI.is_dir():
        pytest.skip(f"there are no emoji in {EMOJI}")
    return clients_of(request.param, tmp_path_factory.mktemp("drawn") / "pictures")


def style_of(name: str) -> str:
    return name.partition(".")[0]


def test_a_client_left_out_is_sent_to_its_own_style_without_training(clients):
    for name, one in clients.items():
        known = aggregate_round([other for key, other in clients.items() if key != name], None, SETTINGS, 1)
        found = arrive(one.z, one.n, known)
        assert known.clusters[found.cluster].members == (f"{style_of(name)}.{1 - int(name[-1])}",), found.reason
        assert found.kind in ("reuse", "align"), found.reason
        start = start_of(found, known)
        if found.kind == "reuse":
            assert start is known.clusters[found.cluster].lora
        after = aggregate_round([one], known, SETTINGS, 2)
        assert after.clients[name].cluster == found.cluster


def test_a_federations_key_changes_no_decision(clients):
    turned = {name: replace(one, z=turn(one.z, bytes(32))) for name, one in clients.items()}
    for name in clients:
        found = []
        for table in (clients, turned):
            known = aggregate_round([other for key, other in table.items() if key != name], None, SETTINGS, 1)
            arrival, after = (
                arrive(table[name].z, table[name].n, known),
                aggregate_round([table[name]], known, SETTINGS, 2),
            )
            groups = {cluster: (one.members, round(one.beta, 4)) for cluster, one in after.clusters.items()}
            found.append((arrival.kind, arrival.cluster, groups, arrival.distance))
        assert found[0][:3] == found[1][:3]
        assert found[0][3] == pytest.approx(found[1][3], abs=1e-6)


def test_a_client_of_a_style_never_seen_opens_a_cluster_of_its_own(clients):
    for style in sorted({style_of(name) for name in clients}):
        known = aggregate_round([one for key, one in clients.items() if style_of(key) != style], None, SETTINGS, 1)
        name = f"{style}.0"
        after = aggregate_round([clients[name]], known, SETTINGS, 2)
        cluster = after.clients[name].cluster
        assert after.clusters[cluster].members == (name,)
        assert cluster not in known.clusters
        # and the second one of the style finds it
        found = arrive(clients[f"{style}.1"].z, clients[f"{style}.1"].n, after)
        assert found.cluster == cluster, found.reason
