import numpy as np
import pytest
from trained import SHAPES, honest, noise, scaled

from fedsd.lowrank import Factor, dense, pad, truncate
from fedsd.strategies.detect import CUT, CUTS, MEMBERS, detect, direction, robust_z
from fedsd.strategies.rules.geometric_median import gram


def cluster(count: int = 5, ranks: tuple[int, ...] = (4, 8, 16)) -> dict[str, dict[str, Factor]]:
    return {f"c{k}": honest(k, ranks[k % len(ranks)]) for k in range(count)}


@pytest.mark.parametrize("count", [4, 5, 8, 20])
@pytest.mark.parametrize("ranks", [(8,), (4, 8, 16), (2, 2, 2, 24), (1,)])
def test_honest_clients_of_unequal_rank_are_not_suspected(count, ranks):
    found = detect(cluster(count, ranks))
    assert found.suspected == {} and found.undecided == ""
    assert found.scores.keys() == {f"c{k}" for k in range(count)}


@pytest.mark.parametrize("odd", [1, 2, 5])
def test_honest_clients_of_another_style_in_the_cluster_are_not_suspected(odd):
    members = {f"c{k}": honest(k, (4, 8)[k % 2], style=int(k < odd)) for k in range(10)}
    # what the styles have in common: every client keeps the base's own words for things
    shared = honest(99, 8, style=7)
    members = {
        name: {layer: truncate(_sum(lora[layer], shared[layer]), lora[layer].rank)[0] for layer in lora}
        for name, lora in members.items()
    }
    assert detect(members).suspected == {}


def _sum(left: Factor, right: Factor) -> Factor:
    return Factor(np.hstack([left.B, 0.7 * right.B]).astype(np.float32), np.vstack([left.A, right.A]))


@pytest.mark.parametrize("count", [4, 5, 10])
@pytest.mark.parametrize("attacker", ["c0", "c1", "c2"])
def test_a_tenfold_update_is_found_by_its_size(count, attacker):
    members = cluster(count)
    members[attacker] = scaled(members[attacker], 10)
    assert list(detect(members).suspected) == [attacker]
    reason = detect(members).suspected[attacker]
    assert "times as large as the median of its cluster" in reason and "cosine" not in reason


def test_honest_sizes_that_spread_widely_hide_a_doubled_update_but_no_tenfold_one():
    honest_sizes = (1.0, 1.6, 0.6, 1.0, 1.6)
    members = {f"c{k}": honest(k, 8, size=size) for k, size in enumerate(honest_sizes)}
    assert detect(members).suspected == {}
    assert detect(members | {"c0": scaled(members["c0"], 2.5)}).suspected == {}
    tenfold = detect(members | {"c0": scaled(members["c0"], 10)})
    assert tenfold.scores["c0"].size_z < CUTS[5]
    assert list(tenfold.suspected) == ["c0"]


@pytest.mark.parametrize("attacker", ["c0", "c1", "c2"])
def test_an_update_of_a_size_that_no_honest_one_has_is_found(attacker):
    members = cluster(5, (8,))
    assert list(detect(members | {attacker: scaled(members[attacker], 1.8)}).suspected) == [attacker]
    assert detect(members | {attacker: scaled(members[attacker], 1.4)}).suspected == {}


def test_whose_last_update_was_not_used_must_keep_to_the_others_size_however_it_spreads():
    members = {f"c{k}": honest(k, 8, size=size) for k, size in enumerate((1.8, 0.7, 0.75, 1.0, 1.05))}
    assert detect(members).suspected == {}
    assert list(detect(members, unproven={"c0", "c3"}).suspected) == ["c0"]


@pytest.mark.parametrize("count", [4, 5, 10])
@pytest.mark.parametrize("attacker", ["c0", "c1", "c2"])
def test_a_flipped_update_is_found_by_its_direction(count, attacker):
    members = cluster(count)
    members[attacker] = scaled(members[attacker], -1)
    found = detect(members)
    assert list(found.suspected) == [attacker]
    assert found.suspected[attacker].startswith("it points against the others of its cluster (cosine -0.")


@pytest.mark.parametrize("count", [4, 5, 10])
@pytest.mark.parametrize("attacker", ["c0", "c1", "c2"])
def test_noise_of_honest_size_is_found_by_its_direction(count, attacker):
    members = cluster(count)
    members[attacker] = noise(members[attacker], 1)
    found = detect(members)
    assert list(found.suspected) == [attacker]
    assert "it has no direction in common with the others" in found.suspected[attacker]


def test_two_that_send_the_same_noise_are_found_by_their_spectra():
    members = cluster(10, (8,))
    members["c0"] = members["c1"] = noise(members["c0"], 1)
    found = detect(members)
    # they agree with each other, so their direction does not give them away
    assert found.scores["c0"].direction > 0.1 * found.scores["c2"].direction
    assert set(found.suspected) == {"c0", "c1"}
    assert found.suspected["c0"].startswith("its spectrum is as flat as noise")


def test_a_fifth_of_the_clients_in_one_cluster_are_all_found():
    members = cluster(10)
    members["c0"], members["c5"] = scaled(members["c0"], -1), scaled(members["c5"], 10)
    assert set(detect(members).suspected) == {"c0", "c5"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_members_cannot_say_who_is_odd(count):
    members = cluster(count)
    members["c0"] = scaled(members["c0"], -100)
    found = detect(members)
    assert found.suspected == {}
    assert found.undecided == f"{count} updates cannot say which of them is the odd one; {MEMBERS} are needed"


def test_where_half_would_be_suspected_nobody_is():
    members = cluster(6, (8,))
    members |= {"c0": noise(members["c0"], 1), "c1": noise(members["c1"], 2), "c2": noise(members["c2"], 3)}
    found = detect(members)
    assert found.suspected == {}
    assert found.undecided == "3 of 6 updates are odd, too many to say who is honest"


def test_updates_that_share_no_direction_are_not_judged_by_it():
    members = {f"c{k}": noise(honest(k), k) for k in range(8)}
    assert detect(members).suspected == {}


def test_neither_other_factors_of_the_same_product_nor_padding_change_anything():
    members = cluster()
    members["c0"] = scaled(members["c0"], 10)
    rng = np.random.default_rng(0)
    other = {}
    for name, lora in members.items():
        G = rng.standard_normal((32, lora["q"].rank, lora["q"].rank))[0] + 3 * np.eye(lora["q"].rank)
        other[name] = {
            layer: Factor((f.B @ G).astype(np.float32), np.linalg.solve(G, f.A).astype(np.float32))
            for layer, f in lora.items()
        }
    # a client that claims rank 30 by columns of zeros is no smaller for each direction that it uses
    other["c0"] = {layer: pad(factor, 30) for layer, factor in other["c0"].items()}
    one, two = detect(members), detect(dict(reversed(other.items())))
    assert one.suspected.keys() == two.suspected.keys() == {"c0"}
    for name in one.scores:
        np.testing.assert_allclose(
            [two.scores[name].size, two.scores[name].direction, two.scores[name].top],
            [one.scores[name].size, one.scores[name].direction, one.scores[name].top], rtol=2e-3,
        )  # fmt: skip


def test_the_scores_are_those_of_the_dense_products():
    members = cluster(5, (4, 6, 5))
    found, p = detect(members), 5
    flat = {name: np.concatenate([dense(lora[layer]).ravel() for layer in SHAPES]) for name, lora in members.items()}
    for name, lora in members.items():
        others = sum(flat[other] / np.linalg.norm(flat[other]) for other in flat if other != name)
        cosine = flat[name] @ others / np.linalg.norm(flat[name]) / np.linalg.norm(others)
        spectra = [np.linalg.svd(dense(factor).astype(np.float64), compute_uv=False) for factor in lora.values()]
        energies = np.array([(S**2).sum() for S in spectra])
        erank = [np.exp(-sum(q * np.log(q) for q in S[S > 1e-6] / S[S > 1e-6].sum())) for S in spectra]
        size = np.linalg.norm(flat[name]) / np.sqrt(np.average(erank, weights=energies))
        top = sum(S[0] ** 2 for S in spectra) / sum((S[:p] ** 2).sum() for S in spectra)
        score = found.scores[name]
        np.testing.assert_allclose([score.size, score.direction, score.top], [size, cosine, top], rtol=1e-4)


def test_an_update_of_zero_has_no_direction_and_breaks_nothing():
    members = cluster()
    members["c0"] = scaled(members["c0"], 0)
    assert "no direction in common" in detect(members).suspected["c0"]
    assert detect({name: scaled(lora, 0) for name, lora in cluster().items()}).suspected == {}


def test_the_cosines_of_four_arrows():
    east, north = (
        {"q": Factor(np.array([[2.0], [0.0]]), np.ones((1, 1)))},
        {"q": Factor(np.array([[0.0], [3.0]]), np.ones((1, 1)))},
    )
    west = {"q": Factor(np.array([[-1.0], [0.0]]), np.ones((1, 1)))}
    # east + north + west, twice, is north alone; the others of north are 2 east + west = east; of west: 2 east + north
    np.testing.assert_allclose(direction(gram([east, east, north, west])), [0, 0, 0, -2 / 5**0.5], atol=1e-12)


def test_robust_deviations_by_hand():
    # median 3, deviations 2 1 0 1 97, their median 1
    np.testing.assert_allclose(robust_z(np.array([1.0, 2, 3, 4, 100])), np.array([-2, -1, 0, 1, 97]) / 1.4826)
    np.testing.assert_array_equal(robust_z(np.array([1.0, 1, 1, 2])), [0, 0, 0, np.inf])


def test_the_cuts_are_passed_by_chance_in_one_case_of_twenty():
    rng = np.random.default_rng(0)
    for members, cut in CUTS.items() | {(12, CUT), (50, CUT)}:
        X = rng.standard_normal((20000, members))
        off = X - np.median(X, axis=1, keepdims=True)
        z = off.max(axis=1) / (1.4826 * np.median(np.abs(off), axis=1))
        assert 0.02 < (z > cut).mean() < 0.055, members


def test_layers_that_differ_are_refused():
    members = cluster()
    del members["c3"]["q"]
    with pytest.raises(ValueError, match="adapt different layers"):
        detect(members)


def test_scores_are_plain_numbers():
    assert all(type(value) is float for value in vars(detect(cluster()).scores["c0"]).values())
