from dataclasses import replace

import numpy as np
import pytest

from fedsd.lowrank import dense, lora_norm, singular_values
from fedsd.strategies.aggregate import STRATEGIES, Settings, aggregate_round
from fedsd.strategies.rules import RULES
from fedsd.strategies.rules.geometric_median import gram, weiszfeld


@pytest.fixture
def updates(make_update):
    """Two styles, unequal ranks and counts."""
    return [
        make_update("c0", 0, seed=1, rank=2, n=40),
        make_update("c1", 0, seed=2, rank=4, n=60),
        make_update("c2", 1, seed=3, rank=3, n=30),
        make_update("c3", 1, seed=4, rank=5, n=90, loss_last=0.25),
    ]


def same(left, right, tolerance=1e-5) -> None:
    assert left.keys() == right.keys()
    for layer in left:
        np.testing.assert_allclose(dense(left[layer]), right[layer], rtol=tolerance, atol=tolerance)


def best_cut(product: np.ndarray, rank: int) -> np.ndarray:
    U, S, Vt = np.linalg.svd(product, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vt[:rank]


def test_a_round_is_algorithm_1_line_by_line(updates, dense_sum):
    after = aggregate_round(updates, None, Settings(), 1)
    # l.8
    assert {key: found.members for key, found in after.clusters.items()} == {0: ("c0", "c1"), 1: ("c2", "c3")}
    # l.10-12: n_i / n_c, cut at the lower middle rank
    goals = [(updates[:2], [0.4, 0.6], 2), (updates[2:], [0.25, 0.75], 3)]
    loras = []
    for found, (members, shares, rank) in zip(after.clusters.values(), goals, strict=True):
        mean = dense_sum([update.lora for update in members], shares)
        same(found.lora, {layer: best_cut(product, rank) for layer, product in mean.items()}, 1e-4)
        assert (found.rank, found.n) == (rank, sum(update.n for update in members))
        np.testing.assert_allclose(found.z, mean_z(members), atol=1e-6)
        loras.append(found.lora)
    # l.16
    tau = [np.mean([singular_values(factor).mean() for factor in lora.values()]) for lora in loras]
    np.testing.assert_allclose([found.tau for found in after.clusters.values()], tau, rtol=1e-5)
    z_k = np.stack([found.z for found in after.clusters.values()])
    z_g = z_k.mean(axis=0) / np.linalg.norm(z_k.mean(axis=0))
    d = np.linalg.norm(z_k - z_g, axis=1)
    np.testing.assert_allclose([found.d for found in after.clusters.values()], d, rtol=1e-5)
    w = 0.5 * (1 / d) / np.mean(1 / d) + 0.5 * np.array(tau) / np.mean(tau)
    beta = w / w.sum()
    np.testing.assert_allclose([found.beta for found in after.clusters.values()], beta, rtol=1e-5)
    # l.15 and l.18-19
    same(after.lora_mix, dense_sum(loras, beta), 1e-4)
    same(after.lora_neu, dense_sum(loras, [0.5, 0.5]), 1e-4)
    assert after.neutral_discarded == 0.0
    assert after.change is None
    assert after.next_id == 2
    assert after.loss == pytest.approx((130 * 0.5 + 90 * 0.25) / 220)


def mean_z(members) -> np.ndarray:
    mean = np.mean([update.z for update in members], axis=0)
    return mean / np.linalg.norm(mean)


def test_the_fedavg_shadow_is_the_factor_mean_of_everybody(updates):
    after = aggregate_round(updates, None, Settings(), 1)
    for layer, factor in after.lora_fedavg.items():
        B = sum(u.n / 220 * np.pad(u.lora[layer].B, ((0, 0), (0, 5 - u.rank))) for u in updates)
        np.testing.assert_allclose(factor.B, B, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_updates_changes_no_bit(updates):
    left, right = (aggregate_round(order, None, Settings(), 1) for order in (updates, updates[::-1]))
    for name in ("lora_mix", "lora_neu", "lora_fedavg"):
        for layer, factor in getattr(left, name).items():
            assert factor.B.tobytes() == getattr(right, name)[layer].B.tobytes()
            assert factor.A.tobytes() == getattr(right, name)[layer].A.tobytes()


def test_everything_stays_float32(updates):
    after = aggregate_round(updates, None, Settings(), 1)
    for lora in (after.lora_mix, after.lora_neu, after.lora_fedavg, after.clusters[0].lora):
        assert {factor.B.dtype.name for factor in lora.values()} == {"float32"}


def test_the_change_is_that_of_the_product(updates):
    first = aggregate_round(updates, None, Settings(), 1)
    again = aggregate_round(updates, first, Settings(), 2)
    assert again.change < 1e-5
    doubled = [
        replace(update, lora={layer: replace(factor, B=2 * factor.B) for layer, factor in update.lora.items()})
        for update in updates
    ]
    assert aggregate_round(doubled, first, Settings(), 2).change == pytest.approx(1, rel=1e-4)
    assert again.server_round == 2


def test_a_client_that_took_no_part_stays_in_its_cluster_and_weighs_nothing(updates, make_update):
    first = aggregate_round(updates, None, Settings(), 1)
    second = aggregate_round(updates[1:], first, Settings(), 2)
    assert second.clusters[0].members == ("c0", "c1")
    assert second.clients["c0"].loss_last == 0.5
    same(second.clusters[0].lora, {layer: dense(factor) for layer, factor in updates[1].lora.items()})
    assert sorted(second.updates) == ["c1", "c2", "c3"]


def test_a_cluster_without_a_part_keeps_its_adapter(updates):
    first = aggregate_round(updates, None, Settings(), 1)
    second = aggregate_round(updates[:2], first, Settings(), 2)
    assert second.clusters[1].lora is first.clusters[1].lora
    assert second.clusters[1].members == ("c2", "c3")


def test_clients_regrouped_while_away_get_the_mean_of_their_old_clusters(updates, dense_sum):
    first = aggregate_round(updates, None, Settings(rule="local"), 1)
    # from a cluster each to one for each style, while c2 and c3 are away
    second = aggregate_round(updates[:2], first, Settings(), 2)
    mean = dense_sum([update.lora for update in updates[2:]], [0.25, 0.75])
    found = next(found for found in second.clusters.values() if found.members == ("c2", "c3"))
    same(found.lora, {layer: best_cut(product, 3) for layer, product in mean.items()}, 1e-4)


def test_a_new_style_gets_a_new_id_and_the_others_keep_theirs(updates, make_update):
    first = aggregate_round(updates, None, Settings(), 1)
    newcomer = make_update("a-new-one", 2, seed=9)
    second = aggregate_round([newcomer, *updates], first, Settings(), 2)
    assert {key: found.members for key, found in second.clusters.items()} == {
        0: ("c0", "c1"),
        1: ("c2", "c3"),
        2: ("a-new-one",),
    }
    assert second.clients["a-new-one"].cluster == 2
    assert second.next_id == 3


def test_the_id_of_a_cluster_that_is_gone_is_not_given_again(make_update):
    angles = {"a": 0.0, "b": 1.0, "c": -1.0}
    updates = [make_update(name, z=np.float32([np.cos(turn), np.sin(turn)])) for name, turn in angles.items()]
    apart = aggregate_round(updates, None, Settings(rule="local"), 1)
    together = aggregate_round(updates, apart, Settings(rule="fedavg"), 2)
    again = aggregate_round(updates, together, Settings(rule="local"), 3)
    assert [list(after.clusters) for after in (apart, together, again)] == [[0, 1, 2], [0], [0, 3, 4]]


def test_one_style_only_gives_one_cluster_and_mix_and_neutral_are_it(make_update):  # I17
    after = aggregate_round([make_update("a", seed=1), make_update("b", seed=2)], None, Settings(), 1)
    assert after.clusters.keys() == {0}
    assert after.clusters[0].beta == 1.0
    product = {layer: dense(factor) for layer, factor in after.clusters[0].lora.items()}
    same(after.lora_mix, product, 1e-4)
    same(after.lora_neu, product, 1e-4)


def test_fedavg_sends_everybody_the_factor_mean(updates):
    after = aggregate_round(updates, None, Settings(rule="fedavg"), 1)
    assert after.clusters[0].members == ("c0", "c1", "c2", "c3")
    for layer, factor in after.clusters[0].lora.items():
        np.testing.assert_array_equal(factor.B, after.lora_fedavg[layer].B)


def test_flora_keeps_the_exact_mean_at_the_sum_of_the_ranks(updates, dense_sum):
    after = aggregate_round(updates, None, Settings(rule="flora"), 1)
    assert after.clusters[0].rank == 14
    same(after.clusters[0].lora, dense_sum([u.lora for u in updates], [u.n / 220 for u in updates]))


def test_the_geometric_median_is_cut_at_the_median_rank(updates, dense_sum):
    after = aggregate_round(updates, None, Settings(rule="geometric-median"), 1)
    u = weiszfeld(gram([update.lora for update in updates]), np.array([update.n for update in updates], dtype=float))
    exact = dense_sum([update.lora for update in updates], u)
    same(after.clusters[0].lora, {layer: best_cut(product, 3) for layer, product in exact.items()}, 1e-3)


@pytest.mark.parametrize(
    "rule", [name for name, entry in RULES.items() if not entry.asks_clients and not entry.one_rank]
)
def test_any_rule_can_stand_inside_clusters_and_across_them(updates, rule):
    after = aggregate_round(updates, None, Settings(inside=rule, across=rule), 1)
    for found, members, rank in zip(after.clusters.values(), (updates[:2], updates[2:]), (2, 3), strict=True):
        combined = RULES[rule].combine([update.lora for update in members], [update.n for update in members], rank).lora
        same(found.lora, {layer: dense(factor) for layer, factor in combined.items()})
    loras = [found.lora for found in after.clusters.values()]
    neutral = RULES[rule].combine(loras, [0.5, 0.5], 64).lora
    same(after.lora_neu, {layer: dense(factor) for layer, factor in neutral.items()}, 1e-4)


def test_local_keeps_everybodys_own(updates):
    after = aggregate_round(updates, None, Settings(rule="local"), 1)
    assert len(after.clusters) == 4
    for update in updates:
        found = after.clusters[after.clients[update.client].cluster]
        for layer, factor in found.lora.items():
            np.testing.assert_array_equal(factor.B, update.lora[layer].B)
            np.testing.assert_array_equal(factor.A, update.lora[layer].A)


@pytest.mark.parametrize("rule", STRATEGIES)
def test_a_rank_cap_bounds_mix_and_neutral_and_its_cost_is_reported(updates, rule):
    after = aggregate_round(updates, None, Settings(rule=rule, rank_cap=1), 1)
    assert {factor.rank for lora in (after.lora_mix, after.lora_neu) for factor in lora.values()} == {1}
    assert 0 < after.neutral_discarded < 1
    free = aggregate_round(updates, None, Settings(rule=rule), 1)
    kept = lora_norm(after.lora_neu) ** 2 / lora_norm(free.lora_neu) ** 2
    assert after.neutral_discarded == pytest.approx(1 - kept, rel=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Settings(rule="fedagv"), r"strategy\.name must be one of style-clustered, everyone, .*; got 'fedagv'"),
        (lambda: Settings(inside="mean"), r"strategy\.inside must be one of fedit, .*; got 'mean'"),
        (lambda: Settings(across="ffa"), r"strategy\.across must be one of .*; got 'ffa' \(clients freeze A\)"),
        (lambda: Settings(rank_cap=0), r"neutral\.rank must be >= 1, got 0"),
        (lambda: aggregate_round([], None, Settings(), 1), "no update to aggregate"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
