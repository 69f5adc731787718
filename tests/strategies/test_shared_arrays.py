"""What clients share besides factors: means against float64, who fits in, and how it travels through rounds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.arrivals import Arrival, arrays_start_of
from fedsd.strategies.intake import open_intake
from fedsd.strategies.round import arrays_of, from_state, to_state
from fedsd.strategies.validate import Limits, check_update, compare
from fedsd.wire import Profile

SHAPES = {"unet.q.shift": (7,), "unet.q.turn": (12,), "unet.conv.turn": (4, 3, 2, 2)}


def drawn(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def updates(make_update):
    """Two styles, unequal counts, no factors."""
    counts = {"c0": (0, 40), "c1": (0, 60), "c2": (1, 30), "c3": (1, 90)}
    return [
        make_update(
            client, style, seed=seed, n=n, rank=1, lora={}, arrays=drawn(seed), directions="aaaa", method="soda"
        )
        for seed, (client, (style, n)) in enumerate(counts.items())
    ]


def dense(parts, weights) -> dict[str, np.ndarray]:
    """Σ w x in float64."""
    return {
        name: sum(w * part[name].astype(np.float64) for part, w in zip(parts, weights, strict=True)) for name in SHAPES
    }


def same(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, wanted[name], rtol=2e-7, atol=1e-7)


def test_each_cluster_has_the_mean_of_its_members(updates):
    after = aggregate_round(updates, None, Settings(), 1)
    means = [dense([u.arrays for u in updates[:2]], [0.4, 0.6]), dense([u.arrays for u in updates[2:]], [0.25, 0.75])]
    for found, mean in zip(after.clusters.values(), means, strict=True):
        same(found.arrays, mean)
        assert found.tau == pytest.approx(np.mean([np.linalg.norm(values) for values in mean.values()]), rel=1e-6)
        assert found.lora == {} and found.rank == 0
    beta = [found.beta for found in after.clusters.values()]
    assert sum(beta) == pytest.approx(1) and 0 < beta[0] < 1
    same(after.arrays["mix"], dense(means, beta))
    same(after.arrays["neutral"], dense(means, [0.5, 0.5]))
    same(after.arrays["fedavg"], dense([u.arrays for u in updates], [40 / 220, 60 / 220, 30 / 220, 90 / 220]))
    assert after.directions == "aaaa" and after.change is None


def test_without_clusters_everybody_is_averaged(updates):
    after = aggregate_round(updates, None, Settings(rule="fedavg"), 1)
    assert len(after.clusters) == 1
    same(after.clusters[0].arrays, after.arrays["fedavg"])


def test_a_cluster_of_absent_members_keeps_its_arrays_and_the_change_is_measured(updates):
    first = aggregate_round(updates, None, Settings(), 1)
    still = aggregate_round(updates[:2], first, Settings(), 2)
    same(still.clusters[1].arrays, first.clusters[1].arrays)
    assert still.change == pytest.approx(0, abs=1e-6)
    twice = [replace(u, arrays={name: 2 * values for name, values in u.arrays.items()}) for u in updates]
    assert aggregate_round(twice, first, Settings(), 2).change == pytest.approx(1, rel=1e-5)


def test_absent_members_are_stood_in_for_by_the_arrays_before(updates):
    first = aggregate_round(updates[:2], None, Settings(), 1)
    after = aggregate_round([updates[0]], first, Settings(participation="inverse-rate"), 2)
    # c1, which was there in the first round and is not now, has its images in the mean
    same(after.clusters[0].arrays, dense([updates[0].arrays, first.clusters[0].arrays], [0.4, 0.6]))


def test_the_order_of_arrival_changes_no_bit(updates):
    one, other = (aggregate_round(given, None, Settings(), 1) for given in (updates, updates[::-1]))
    for name in SHAPES:
        np.testing.assert_array_equal(one.arrays["mix"][name], other.arrays["mix"][name])


def test_a_round_survives_the_store_bit_for_bit(updates):
    after = aggregate_round(updates, None, Settings(), 1)
    state, loras = to_state(after)
    back = from_state(json.loads(json.dumps(state)), loras, arrays_of(after))
    assert back.directions == "aaaa" and back.arrays.keys() == after.arrays.keys()
    for key, found in after.clusters.items():
        for name, values in found.arrays.items():
            np.testing.assert_array_equal(back.clusters[key].arrays[name], values)
    old = {key: value for key, value in state.items() if key != "directions"}
    assert from_state(old, loras).clusters[0].arrays == {}


def test_a_newcomer_starts_between_cluster_and_mix_as_far_as_it_is(updates):
    known = aggregate_round(updates, None, Settings(), 1)
    near, mix = known.clusters[1].arrays, known.arrays["mix"]
    for kind, distance, shares in (("reuse", 0.1, (1, 0)), ("align", 0.3, (0.75, 0.25)), ("new", 0.9, (0, 1))):
        start = arrays_start_of(Arrival(kind, 1, distance, 0.2, 0.6), known)
        same(start, dense([near, mix], shares))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"directions": "bbbb"}, r"into other directions \(bbbb, not aaaa\)"),
        ({"directions": ""}, r"into other directions \(none, not aaaa\)"),
        ({"arrays": {"unet.q.shift": np.ones(7, np.float32)}}, "2 layers are missing, such as unet.conv.turn"),
        ({"arrays": drawn(9) | {"unet.q.turn": np.ones(5, np.float32)}}, r"unet.q.turn has shape \(5,\) instead of"),
        ({"arrays": drawn(9) | {"unet.k.turn": np.ones(5, np.float32)}}, "1 layers are unknown, such as unet.k"),
    ],
)
def test_who_does_not_fit_is_dropped_and_told_why(updates, change, said):
    odd = [*updates, replace(updates[0], client="c9", **change)]
    norms = {update.client: check_update(update, Limits()) for update in odd}
    verdict = compare(odd, norms, Limits())
    assert list(verdict.reasons) == ["c9"] and len(verdict.good) == 4
    with pytest.raises(ValueError, match=said):
        raise ValueError(verdict.reasons["c9"])


def test_later_rounds_expect_what_the_first_had(updates):
    first = aggregate_round(updates, None, Settings(), 1)
    profiles = [Profile(u.client, u.z, u.n, u.rank, u.base_sha) for u in updates]
    intake = open_intake(profiles, first, Settings(), Limits(), 0)
    for update in updates:  # all of them, so that it is not the majority that decides
        intake.take(replace(update, directions="bbbb"), check_update(update, Limits()))
    outcome = intake.finish(2)
    assert outcome.after is None and len(outcome.reasons) == 4
    assert all("(bbbb, not aaaa)" in reason for reason in outcome.reasons.values())


def test_arrays_count_in_the_norm(updates):
    sound = updates[0]
    norm = check_update(sound, Limits())
    assert norm == pytest.approx(np.sqrt(sum((values.astype(float) ** 2).sum() for values in sound.arrays.values())))
    huge = replace(sound, arrays=sound.arrays | {"unet.q.turn": np.full(12, 1e5, np.float32)})
    with pytest.raises(ValueError, match="at most 1e\\+04 is accepted"):
        check_update(huge, Limits())
    broken = replace(sound, arrays=sound.arrays | {"unet.q.turn": np.full(12, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"unet\.q\.turn holds NaN or Inf; lower train\.lr on that node"):
        check_update(broken, Limits())
    with pytest.raises(ValueError, match="its reply holds no adapter"):
        check_update(replace(sound, arrays={}), Limits())


def test_replies_cannot_be_folded_as_they_come(updates):
    profiles = [Profile(u.client, u.z, u.n, u.rank, u.base_sha) for u in updates]
    intake = open_intake(profiles, None, Settings(), Limits(), 64)
    with pytest.raises(ValueError, match=r"strategy\.stack-cap cannot fold; set it to 0"):
        intake.take(updates[0], 1.0)
