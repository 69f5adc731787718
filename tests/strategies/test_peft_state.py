"""Against PEFT itself: what it adds to the weights of a small model."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from fedsd.lowrank import dense
from fedsd.strategies.peft_state import fold, from_peft, is_lora, scale, to_peft


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.second = nn.Linear(5, 5)
        self.image = nn.Conv2d(3, 4, 3)
        self.sound = nn.Conv1d(2, 6, 5)


TARGETS = ["first", "second", "image", "sound"]


def adapted(**options) -> tuple:
    torch.manual_seed(0)
    config = LoraConfig(**({"r": 3, "lora_alpha": 12, "target_modules": TARGETS} | options))
    model = get_peft_model(Net(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    state = {key: value.numpy() for key, value in get_peft_model_state_dict(model).items()}
    return model, config.to_dict(), state


def deltas(model) -> dict[str, np.ndarray]:
    return {
        name: module.get_delta_weight("default").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"second": 2, "image": 4}, "alpha_pattern": {"sec.*": 5, "sound": 1}},
        {"rank_pattern": {"first": 1}, "alpha_pattern": {"image": 3}, "use_rslora": True},
    ],
)
def test_the_products_are_what_peft_adds_to_the_weights(options):  # I14
    model, config, state = adapted(**options)
    lora = from_peft(state, config)
    expected = deltas(model)
    assert lora.keys() == expected.keys()
    for layer, delta in expected.items():
        np.testing.assert_allclose(dense(lora[layer]), delta.reshape(len(delta), -1), rtol=1e-5, atol=1e-5)


def test_what_is_written_back_adds_the_same():
    model, config, state = adapted(rank_pattern={"second": 2}, alpha_pattern={"sound": 1})
    before = deltas(model)
    other, config, like = adapted(rank_pattern={"second": 2}, alpha_pattern={"sound": 1})
    written = to_peft(from_peft(state, config), config, like)
    result = set_peft_model_state_dict(other, {key: torch.from_numpy(array) for key, array in written.items()})
    assert not result.unexpected_keys
    for layer, delta in deltas(other).items():
        np.testing.assert_allclose(delta, before[layer], rtol=1e-5, atol=1e-6)


def test_keys_with_the_adapters_name_are_read_too():
    A, B = np.ones((1, 3), np.float32), np.ones((2, 1), np.float32)
    lora = from_peft({"q.lora_A.default.weight": A, "q.lora_B.default.weight": B}, {"r": 1, "lora_alpha": 4})
    np.testing.assert_array_equal(dense(lora["q"]), np.full((2, 3), 4, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scale_is_folded_into_b(dtype):
    B, A = np.array([[1.0], [2.0]], dtype).repeat(4, 1), np.ones((4, 3), dtype)
    np.testing.assert_array_equal(fold(B, A, 8, 4).B, 2 * B)
    np.testing.assert_array_equal(fold(B, A, 8, 4, rslora=True).B, 4 * B)
    assert fold(B, A, 8, 4).B.dtype == dtype


def test_adapters_and_whole_modules_are_told_apart():
    assert is_lora("base_model.model.q.lora_A.weight")
    assert not is_lora("base_model.model.classifier.weight")


def refused(**options):
    _, config, state = adapted(**options)
    return from_peft(state, config)


ONE = {"r": 1, "lora_alpha": 1}
PAIR = {"q.lora_A.weight": np.ones((1, 3)), "q.lora_B.weight": np.ones((2, 1))}


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: refused(use_dora=True, target_modules=["first"]), "use_dora is set: DoRA, whose magnitudes"),
        (lambda: refused(lora_bias=True, target_modules=["first"]), "the config trains a bias; train with bias='none'"),
        (lambda: refused(bias="all"), "the config trains a bias"),
        (lambda: from_peft({**PAIR, "q.lora_magnitude_vector": np.ones(2)}, ONE), "q.lora_magnitude_vector is DoRA"),
        (lambda: from_peft({**PAIR, "q.lora_B.bias": np.ones(2)}, ONE), "q.lora_B.bias is a bias"),
        (lambda: from_peft({**PAIR, "e.lora_embedding_A": np.ones((1, 9))}, ONE), "LoRA on an embedding"),
        (lambda: from_peft({**PAIR, "head.weight": np.ones((1, 9))}, ONE), "head.weight is no LoRA factor"),
        (lambda: to_peft({}, ONE, {"head.weight": np.ones((1, 9))}), "head.weight is no LoRA factor"),
        (lambda: from_peft({"q.lora_A.weight": np.ones((1, 3))}, ONE), "layer q has lora_A but not its other half"),
        (lambda: from_peft(PAIR, {"r": 2, "lora_alpha": 1}), r"B \(2, 1\) and A \(1, 3\) are not of rank 2"),
        (lambda: fold(np.ones((4, 2, 3, 3)), np.ones((2, 5, 1, 1)), 1, 2), "its kernel must be 1"),
        (lambda: scale(0, 4), "lora_alpha and rank must be positive, got 0 and 4"),
    ],
)
def test_what_is_no_product_of_two_factors_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
