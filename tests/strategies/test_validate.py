from dataclasses import replace

import numpy as np
import pytest

from fedsd.lowrank import Factor, lora_norm
from fedsd.strategies.validate import Expected, Limits, check_update, compare, majority

LAYER = "unet.attn.to_q"


def with_factor(update, layer=LAYER, **halves):
    factor = update.lora[layer]
    return replace(update, lora={**update.lora, layer: Factor(halves.get("B", factor.B), halves.get("A", factor.A))})


def norms(updates):
    return {update.client: lora_norm(update.lora) for update in updates}


def scaled(update, by):
    return replace(update, lora={layer: Factor(factor.B * by, factor.A) for layer, factor in update.lora.items()})


def poke(array, value):
    changed = array.copy()
    changed[-1, -1] = value
    return changed


def test_a_sound_update_passes_and_its_norm_is_that_of_the_product(make_update):
    update = make_update("c0")
    assert check_update(update, Limits()) == pytest.approx(lora_norm(update.lora))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda u: replace(u, n=0), "it trained on 0 images; it needs at least 1"),
        (lambda u: replace(u, n=-5), "it trained on -5 images"),
        (lambda u: replace(u, rank=0), r"its rank is 0; ranks must be 1 to 256 \(check lora\.ranks on that node\)"),
        (lambda u: replace(u, rank=300), "its rank is 300"),
        (lambda u: replace(u, rank=2), f"layer {LAYER} has rank 3, more than the 2 it reports"),
        (lambda u: replace(u, loss_last=float("nan")), r"its loss went from 1\.0 to nan; lower train\.lr on that node"),
        (lambda u: replace(u, loss_first=float("inf")), r"its loss went from inf to 0\.5"),
        (lambda u: replace(u, seconds=float("nan")), r"it reports nan seconds and 10\.0 images per second"),
        (lambda u: replace(u, z=u.z * 2), "its style embedding has length 2; it must be finite and of length 1"),
        (lambda u: replace(u, z=u.z * np.float32("nan")), "its style embedding has length nan"),
        (lambda u: replace(u, lora={}), "its reply holds no adapter"),
        (lambda u: with_factor(u, A=poke(u.lora[LAYER].A, np.nan)), rf"layer {LAYER}\.A holds NaN or Inf"),
        (lambda u: with_factor(u, B=poke(u.lora[LAYER].B, -np.inf)), rf"layer {LAYER}\.B holds NaN or Inf"),
        (lambda u: scaled(u, np.float32(1e5)), r"its update has norm .*e\+06; at most 1e\+04 is accepted"),
        (lambda u: with_factor(u, B=u.lora[LAYER].B * 1e30, A=u.lora[LAYER].A * 1e30), "its update has norm inf"),
    ],
)
def test_an_unsound_update_is_refused_with_what_is_wrong(make_update, spoil, message):
    with pytest.raises(ValueError, match=message):
        check_update(spoil(make_update("c0")), Limits())


def test_updates_alike_are_all_good_and_sorted(make_update):
    updates = [make_update(f"c{i}", seed=i) for i in (2, 0, 1)]
    verdict = compare(updates, norms(updates), Limits())
    assert [update.client for update in verdict.good] == ["c0", "c1", "c2"]
    assert (verdict.reasons, verdict.capped) == ({}, {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda u: replace(u, lora={k: u.lora[k] for k in list(u.lora)[1:]}), f"1 layers are missing, such as {LAYER}"),
        (lambda u: replace(u, lora={**u.lora, "x.extra": u.lora[LAYER]}), "1 layers are unknown, such as x.extra"),
        (
            lambda u: with_factor(u, B=np.ones((5, 3), np.float32)),
            f"layer {LAYER} has shape (5, 7) instead of (12, 7)",
        ),
        (
            lambda u: with_factor(u, B=np.ones((7, 3), np.float32), A=np.ones((3, 12), np.float32)),  # transposed
            f"layer {LAYER} has shape (7, 12) instead of (12, 7)",
        ),
        (
            lambda u: replace(u, base_sha="f" * 40),
            "it trained base ffffffffffff, not abc123; give all nodes the same base.name",
        ),
        (lambda u: replace(u, z=u.z[:5]), "its style embedding has 5 numbers instead of 8; use one style encoder"),
    ],
)
def test_an_update_unlike_the_others_is_dropped(make_update, spoil, message):
    updates = [make_update("c0"), spoil(make_update("c1")), make_update("c2")]
    verdict = compare(updates, norms(updates), Limits())
    assert verdict.reasons == {"c1": message}
    assert [update.client for update in verdict.good] == ["c0", "c2"]


def test_of_two_that_differ_the_one_with_more_layers_is_right(make_update):
    whole = make_update("c1")
    part = replace(make_update("c0"), lora={LAYER: whole.lora[LAYER]})
    assert compare([part, whole], norms([part, whole]), Limits()).reasons.keys() == {"c0"}


def test_what_the_round_before_had_is_expected_even_of_a_majority(make_update):
    updates = [replace(make_update(f"c{i}"), base_sha="new") for i in range(3)]
    expected = Expected(majority(updates).layers, 8, "abc123")
    verdict = compare(updates, norms(updates), Limits(), expected)
    assert verdict.reasons.keys() == {"c0", "c1", "c2"}
    assert verdict.good == ()


def test_an_update_much_larger_than_the_median_is_dropped(make_update):
    updates = [scaled(make_update(f"c{i}"), np.float32(size)) for i, size in enumerate((1, 2, 11, 30))]
    verdict = compare(updates, norms(updates), Limits(norm_over_median=10))
    assert verdict.reasons.keys() == {"c3"}
    assert "15 times the median of the round; at most 10 times is accepted" in verdict.reasons["c3"]


def test_two_updates_cannot_tell_which_of_them_is_too_large(make_update):
    updates = [make_update("c0"), scaled(make_update("c1"), np.float32(50))]
    assert compare(updates, norms(updates), Limits()).reasons == {}


def test_updates_of_zero_do_not_condemn_the_others(make_update):
    updates = [scaled(make_update(f"c{i}"), np.float32(size)) for i, size in enumerate((0, 0, 1))]
    assert compare(updates, norms(updates), Limits()).reasons == {}


def test_a_weight_is_capped_at_a_multiple_of_the_median(make_update):
    updates = [make_update("c0", n=10), make_update("c1", n=20), make_update("c2", n=10**9)]
    verdict = compare(updates, norms(updates), Limits(n_over_median=5))
    assert verdict.capped == {"c2": 100}
    assert [update.n for update in verdict.good] == [10, 20, 100]


def test_no_update_is_no_verdict():
    verdict = compare([], {}, Limits())
    assert (verdict.good, verdict.reasons, verdict.capped) == ((), {}, {})
