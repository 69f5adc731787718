"""Nodes of several methods in one round: who is averaged with whom, who gets what back, and who is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedsd.lowrank import dense
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.arrivals import arrive
from fedsd.strategies.intake import open_intake
from fedsd.strategies.participation import arrays_before
from fedsd.strategies.parts import FACTORS, SHIFTS, WORD, drawn_by, parts_by_method, parts_in
from fedsd.strategies.round import arrays_of, from_state, to_state
from fedsd.strategies.starts import start_for
from fedsd.strategies.validate import Limits, check_update, compare
from fedsd.wire import Profile

PARTS = parts_by_method()


def shifts(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"unet.q.shift": rng.standard_normal(7, np.float32), "unet.q.turn": rng.standard_normal(12, np.float32)}


def word(seed: int) -> dict[str, np.ndarray]:
    return {"token": np.random.default_rng(seed).standard_normal((1, 6), np.float32)}


@pytest.fixture
def fleet(make_update):
    """Style 0 has all four methods, style 1 two nodes of SODA and a word, but no factors."""

    def soda(client, style, seed, n):
        more = {"lora": {}, "arrays": shifts(seed), "rank": 1, "method": "soda", "directions": "aaaa"}
        return make_update(client, style, seed=seed, n=n, **more)

    def zo(client, style, seed, n):
        return make_update(client, style, seed=seed, n=n, lora={}, arrays=word(seed), rank=1, method="zo-token")

    return [
        make_update("c0", 0, seed=0, n=40, rank=5), make_update("c1", 0, seed=1, n=60, rank=3, method="spire"),
        soda("c2", 0, 2, 50), zo("c3", 0, 3, 30),
        soda("c4", 1, 4, 20), soda("c5", 1, 5, 60), zo("c6", 1, 6, 10),
    ]  # fmt: skip


def profile_of(update) -> Profile:
    return Profile(update.client, update.z, update.n, update.rank, update.base_sha, update.method)


def after_round(fleet, previous=None, server_round=1, settings=Settings()):  # noqa: B008
    return aggregate_round(fleet, previous, settings, server_round)


def test_each_part_is_averaged_among_those_who_share_it(fleet, dense_sum) -> None:
    after = after_round(fleet)
    one, other = after.clusters.values()
    assert one.members == ("c0", "c1", "c2", "c3") and other.members == ("c4", "c5", "c6")
    # LoRA and SPIRE's backbone are one thing; the ranks of nodes without factors do not count for the median
    assert one.rank == 3 and other.rank == 0 and other.lora == {}
    whole = dense_sum([fleet[0].lora, fleet[1].lora], [0.4, 0.6])
    for layer, factor in one.lora.items():
        U, S, Vt = np.linalg.svd(whole[layer])
        np.testing.assert_allclose(dense(factor), (U[:, :3] * S[:3]) @ Vt[:3], atol=1e-4)
    assert one.arrays.keys() == other.arrays.keys() == {"unet.q.shift", "unet.q.turn", "token"}
    for name in ("unet.q.shift", "unet.q.turn"):
        np.testing.assert_array_equal(one.arrays[name], fleet[2].arrays[name])
        np.testing.assert_allclose(
            other.arrays[name], 0.25 * fleet[4].arrays[name] + 0.75 * fleet[5].arrays[name], atol=1e-6
        )
    np.testing.assert_array_equal(other.arrays["token"], fleet[6].arrays["token"])
    assert after.directions == "aaaa"


def test_mix_and_neutral_are_made_of_the_clusters_that_have_a_part(fleet) -> None:
    after = after_round(fleet)
    one, other = after.clusters.values()
    assert one.beta + other.beta == pytest.approx(1) and 0 < one.beta < 1
    for layer, factor in one.lora.items():  # the other cluster has no factors, so it does not shrink the mix
        np.testing.assert_allclose(dense(after.lora_mix[layer]), dense(factor), atol=1e-5)
        np.testing.assert_allclose(dense(after.lora_neu[layer]), dense(factor), atol=1e-5)
    for name, values in after.arrays["mix"].items():
        np.testing.assert_allclose(values, one.beta * one.arrays[name] + other.beta * other.arrays[name], atol=1e-6)
    words = [fleet[3], fleet[6]]
    mean = sum(update.n * update.arrays["token"] for update in words) / 40
    np.testing.assert_allclose(after.arrays["fedavg"]["token"], mean, atol=1e-6)
    assert after.updates.keys() == {"c0", "c1"}


def test_clusters_that_share_different_things_weigh_by_their_own_kind(fleet) -> None:
    after = after_round(fleet)
    # each is the only one of its kind, so that neither is stronger, whatever the units of its numbers
    assert [found.tau for found in after.clusters.values()] == [1, 1]


def test_an_order_holds_what_the_node_can_use(fleet) -> None:
    after = after_round(fleet)
    for update in fleet:
        start = start_for(profile_of(update), after, {}, PARTS[update.method])
        assert parts_in(start.lora, start.arrays) == PARTS[update.method] == parts_in(update.lora, update.arrays)
        assert start.cluster == after.clients[update.client].cluster and start.last_round == 1
    first = start_for(profile_of(fleet[3]), None, fleet[0].lora, PARTS["zo-token"])
    assert first.lora == {} and first.arrays == {}


def test_a_newcomer_gets_its_part_from_the_mix_where_its_cluster_has_none(fleet) -> None:
    after = after_round(fleet)
    newcomer = Profile("c9", fleet[5].z, 20, 4, "abc123", "lora")
    assert arrive(newcomer.z, newcomer.n, after).cluster == after.clients["c5"].cluster
    start = start_for(newcomer, after, {}, PARTS["lora"])
    assert start.lora is after.lora_mix and start.arrays == {} and start.arrival is not None


def test_a_part_whose_nodes_are_absent_stays_as_it_was(fleet) -> None:
    first = after_round(fleet)
    for participation in ("none", "inverse-rate"):
        after = after_round(fleet[:2], first, 2, Settings(participation=participation))
        for key, found in after.clusters.items():
            assert found.members == first.clusters[key].members
            for name, values in first.clusters[key].arrays.items():
                np.testing.assert_array_equal(found.arrays[name], values)
    assert after.directions == "aaaa"
    only_words = after_round([fleet[6]], None, 1)
    later = after_round(fleet, only_words, 2)  # factors and shifts are new to the mix, which is not an error
    assert later.change is not None and later.change > 0 and later.clusters.keys() == {0, 1}


def test_what_stands_in_for_absent_nodes_is_of_their_part(fleet) -> None:
    known = after_round(fleet[:-1])  # nobody in the second cluster has a word
    found = arrays_before({"c2", "c4", "c5"}, known, SHIFTS)
    one, other = known.clusters.values()
    assert "token" in one.arrays and "token" not in other.arrays
    assert found.keys() == {"unet.q.shift", "unet.q.turn"}
    for name, values in found.items():
        np.testing.assert_allclose(values, (50 * one.arrays[name] + 80 * other.arrays[name]) / 130, atol=1e-6)


def test_a_mixed_round_survives_the_store(fleet) -> None:
    after = after_round(fleet)
    state, loras = to_state(after)
    back = from_state(json.loads(json.dumps(state)), loras, arrays_of(after))
    assert {name: client.parts for name, client in back.clients.items()} == {
        name: client.parts for name, client in after.clients.items()
    }
    one, other = (after_round(fleet[:3], known, 2) for known in (after, back))
    for key, found in one.clusters.items():
        assert found.arrays.keys() == other.clusters[key].arrays.keys()
        for name, values in found.arrays.items():
            np.testing.assert_array_equal(values, other.clusters[key].arrays[name])
    for entry in state["clients"].values():
        del entry["parts"]  # as it was when all clients of a run shared the same
    assert from_state(state, loras, arrays_of(after)).clients["c4"].parts == (SHIFTS, WORD)


@pytest.mark.parametrize(
    ("client", "change", "said"),
    [
        ("c0", {"lora": {}, "arrays": word(1)}, "trains 'lora', which shares factors, and sends word"),
        ("c2", {"arrays": word(1)}, "trains 'soda', which shares shifts, and sends word"),
        ("c3", {"arrays": shifts(1) | word(1)}, "trains 'zo-token', which shares word, and sends shifts and word"),
        (
            "c1",
            {"arrays": {"embedding.W1": np.ones((2, 2), np.float32)}},
            "which shares factors, and sends factors and",
        ),
    ],
)
def test_who_sends_another_methods_part_is_refused(fleet, client, change, said) -> None:
    update = replace(next(update for update in fleet if update.client == client), **change)
    with pytest.raises(ValueError, match=said):
        check_update(update, Limits())


def test_one_bad_client_of_a_method_costs_nobody_else_the_round(fleet) -> None:
    first = after_round(fleet)
    bad = {
        "c2": {"directions": "bbbb"},
        "c3": {"arrays": {"token": np.ones((2, 6), np.float32)}},
        "c1": {"lora": {"unet.attn.to_q": fleet[1].lora["unet.attn.to_q"]}},
    }
    sent = [replace(update, **bad.get(update.client, {})) for update in fleet]
    intake = open_intake([profile_of(update) for update in fleet], first, Settings(), Limits(), 0)
    for update in sent:
        intake.take(update, check_update(update, Limits()))
    outcome = intake.finish(2)
    assert outcome.after is not None and outcome.after.present == ("c0", "c4", "c5", "c6")
    assert "(bbbb, not aaaa)" in outcome.reasons["c2"] and "shape (2, 6) instead of (1, 6)" in outcome.reasons["c3"]
    assert "2 layers are missing" in outcome.reasons["c1"]


def test_sizes_are_compared_among_those_who_share_the_same(fleet) -> None:
    tiny = [replace(u, arrays={k: v / 1e4 for k, v in u.arrays.items()}) if u.method != "lora" else u for u in fleet]
    norms = {update.client: check_update(update, Limits()) for update in tiny}
    assert compare(tiny, norms, Limits()).reasons == {}  # factors are not too large beside words
    huge = replace(fleet[2], arrays={name: 1000 * values for name, values in fleet[2].arrays.items()})
    sent = [huge if update.client == "c2" else update for update in fleet]
    verdict = compare(sent, {update.client: check_update(update, Limits()) for update in sent}, Limits())
    assert verdict.reasons.keys() == {"c2"} and "times the median" in verdict.reasons["c2"]


def test_what_is_drawn_by() -> None:
    assert drawn_by({FACTORS, SHIFTS, WORD}) == ("lora", {FACTORS})
    assert drawn_by({SHIFTS, WORD}) == ("soda", {SHIFTS})
    assert drawn_by({WORD}) == ("zo-token", {WORD})
    assert drawn_by({"weights", "maps"}) == ("spire", {"weights", "maps"})
    projected = parts_by_method("projected", "full")["spire"]
    assert projected == {"weights", "maps"}
