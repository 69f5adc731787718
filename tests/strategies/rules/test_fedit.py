import numpy as np
import pytest

from fedsd.lowrank import Factor
from fedsd.strategies.rules.fedit import fedit


def test_the_factors_are_averaged_one_by_one():
    first = {"q": Factor(np.array([[1.0], [3.0]]), np.array([[2.0, 0.0]]))}
    second = {"q": Factor(np.array([[5.0], [-1.0]]), np.array([[0.0, 4.0]]))}
    mean = fedit([first, second], [1, 3]).lora
    np.testing.assert_array_equal(mean["q"].B, [[4.0], [0.0]])
    np.testing.assert_array_equal(mean["q"].A, [[0.5, 3.0]])


def test_unequal_ranks_are_refused(make_lora):
    with pytest.raises(ValueError, match=r"FedIT needs one rank, and layer unet.attn.to_q comes at ranks \[2, 4\]"):
        fedit([make_lora(0, 2), make_lora(1, 4)], [1, 1])
