import json

import numpy as np

from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.detect import Scores
from fedsd.strategies.events import client_done, client_suspected, round_clusters


def test_a_finished_client_is_told_with_its_figures(make_update):
    event = client_done(3, make_update("c1", rank=4, n=12))
    assert event == {
        "event": "client.done",
        "round": 3,
        "client": "c1",
        "rank": 4,
        "n": 12,
        "loss_first": 1.0,
        "loss_last": 0.5,
        "seconds": 2.0,
        "images_per_second": 10.0,
        "bytes": 0,
        "encoding": "float32",
        "bandwidth": None,
    }


def test_the_clusters_are_told_by_id_and_as_json(make_update):
    after = aggregate_round([make_update("a", 0, rank=2), make_update("b", 1, rank=5)], None, Settings(), 1)
    event = json.loads(json.dumps(round_clusters(after)))
    assert event["clusters"] == {"0": ["a"], "1": ["b"]}
    assert event["ranks"] == {"a": 2, "b": 5}
    assert event["median_rank"] == {"0": 2, "1": 5}
    assert event["beta"]["0"] + event["beta"]["1"] == 1.0
    assert event.keys() == {"event", "round", "clusters", "silhouette", "ranks", "median_rank", "beta", "d", "tau"}


def test_a_suspected_client_is_told_with_reason_and_scores_and_as_json():
    event = json.loads(json.dumps(client_suspected(2, "c1", "it is large", Scores(9.0, 0.5, 0.7, np.inf, -np.inf))))
    assert event == {
        "event": "client.suspected", "round": 2, "client": "c1", "reason": "it is large",
        "size": 9.0, "direction": 0.5, "top": 0.7, "size_z": 1e9, "top_z": -1e9,
    }  # fmt: skip
