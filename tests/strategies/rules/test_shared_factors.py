"""Rules that need one factor to be the same on all clients: FFA-LoRA, RoLoRA, FedSVD; and FedSA-LoRA."""

import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.rules.fedsa import fedsa
from fedsd.strategies.rules.fedsvd import fedsvd
from fedsd.strategies.rules.ffa import ffa
from fedsd.strategies.rules.rolora import rolora, trained_side


@pytest.fixture
def one_a(make_lora):
    A = make_lora(9)
    return [{layer: Factor(f.B, A[layer].A) for layer, f in make_lora(seed).items()} for seed in range(3)]


@pytest.fixture
def one_b(make_lora):
    B = make_lora(9)
    return [{layer: Factor(B[layer].B, f.A) for layer, f in make_lora(seed).items()} for seed in range(3)]


def test_ffa_keeps_the_bits_of_a(one_a, dense_sum):  # I12
    found = ffa(one_a, [1, 1, 2]).lora
    for layer, product in dense_sum(one_a, [0.25, 0.25, 0.5]).items():
        np.testing.assert_array_equal(found[layer].A, one_a[0][layer].A)
        np.testing.assert_allclose(dense(found[layer]), product, atol=1e-13)


def test_rolora_trains_b_in_odd_rounds_and_a_in_even_ones(one_a, one_b, dense_sum):
    assert [trained_side(server_round) for server_round in (1, 2, 3)] == ["B", "A", "B"]
    for loras, side in ((one_a, "B"), (one_b, "A")):
        found = rolora(loras, [1, 1, 2], side=side).lora
        for layer, product in dense_sum(loras, [0.25, 0.25, 0.5]).items():
            np.testing.assert_allclose(dense(found[layer]), product, atol=1e-13)


def test_fedsvd_turns_a_to_orthonormal_rows_and_keeps_the_product(one_a, dense_sum):
    found = fedsvd(one_a, [1, 1, 2]).lora
    for layer, product in dense_sum(one_a, [0.25, 0.25, 0.5]).items():
        np.testing.assert_allclose(found[layer].A @ found[layer].A.T, np.eye(3), atol=1e-13)
        np.testing.assert_allclose(dense(found[layer]), product, atol=1e-13)


def test_fedsa_gives_every_client_its_own_b_and_the_mean_a(make_lora):
    loras = [make_lora(0, 2), make_lora(1, 3)]
    found = fedsa(loras, [1, 3])
    for layer in loras[0]:
        A = np.pad(loras[0][layer].A, ((0, 1), (0, 0))) / 4 + loras[1][layer].A * 0.75
        for lora, own in zip(loras, found.personal, strict=True):
            np.testing.assert_allclose(own[layer].A, A, atol=1e-15)
            np.testing.assert_array_equal(own[layer].B[:, : lora[layer].rank], lora[layer].B)


@pytest.mark.parametrize("rule", [ffa, fedsvd])
def test_another_a_is_refused(make_lora, rule):
    with pytest.raises(ValueError, match="FFA-LoRA needs the same A on all clients, and client 1 differs"):
        rule([make_lora(0), make_lora(1)], [1, 1])


def test_another_b_is_refused_when_a_was_trained(make_lora):
    with pytest.raises(ValueError, match="RoLoRA needs the same B on all clients"):
        rolora([make_lora(0), make_lora(1)], [1, 1], side="A")
    with pytest.raises(ValueError, match="side must be A or B, the factor that was trained; got 'C'"):
        rolora([make_lora(0)], [1], side="C")
