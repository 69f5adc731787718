import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import random_lora, tiny_base, unet_input, unet_output
from torch import nn

from fedsd.base import adapters
from fedsd.base.denoise import encode_pixels, encode_prompts, generate
from fedsd.base.load import Base, load
from fedsd.base.quantised import W4, W8, QuantisedLayer, bits_of, quantise_layers, quantised
from fedsd.base.training import Descent, Pictures, Shared, descend, noised
from fedsd.data.drawn import draw
from fedsd.methods.lora import Settings, fit

PROMPTS = ["a cat", "a tree"]
# ||W' - W|| / ||W|| of Gaussian weights: a step of W8 is max|w| / 127, one of W4 a sixteenth of 32 weights' range
ERROR = {8: 0.01, 4: 0.09}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("kind", "bits"), [(W8, 8), (W4, 4)])
@pytest.mark.parametrize("shape", [(64, 320), (8, 4, 3, 3), (5, 3, 1, 1), (1, 1), (3, 33)])
def test_weights_come_back_nearly(kind: type[nn.Module], bits: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.rand(shape[0]).view(
        -1, *[1] * (len(shape) - 1)
    )
    found = kind(weight)(torch.float32)
    assert found.shape == weight.shape and relative(found, weight) < ERROR[bits]


def test_steps_by_hand() -> None:
    """A W8 row of maximum 127 has scale 1; a W4 group from 0 to 15 too, and the next group its own."""
    row = torch.tensor([[127.0, -3.4, 0.0, 2.6]])
    assert W8(row)(torch.float32).tolist() == [[127, -3, 0, 3]]
    first = torch.tensor([0.0, 15.0, 3.4, 2.6] * 8)
    rows = torch.cat([first, 10 * first])[None]
    assert W4(rows)(torch.float32)[0, :4].tolist() == [0, 15, 3, 3]
    assert W4(rows)(torch.float32)[0, 32:36].tolist() == [0, 150, 30, 30]


def test_a_channel_of_zeros_or_of_one_value() -> None:
    for value in (0.0, 0.25):
        weight = torch.full((2, 40), value)
        torch.testing.assert_close(W8(weight)(torch.float32), weight)
        torch.testing.assert_close(W4(weight)(torch.float32), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(24, 16), nn.Linear(24, 16, bias=False), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2),
        nn.Conv2d(8, 16, 3, dilation=2, groups=4, bias=False), nn.Conv2d(8, 4, 1),
    ],
)  # fmt: skip
def test_layer_is_that_of_its_dequantised_weight(layer: nn.Linear | nn.Conv2d, bits: int) -> None:
    x = torch.randn((3, 24) if isinstance(layer, nn.Linear) else (3, 8, 9, 9))
    found, same = QuantisedLayer(copy.deepcopy(layer), bits), copy.deepcopy(layer)
    same.weight.data = found.packed(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found(x), same(x), rtol=0, atol=1e-6)
        half = found.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_bytes_of_a_weight() -> None:
    weight = torch.randn(64, 320)
    size = lambda packed: sum(b.numel() * b.element_size() for b in packed.buffers())  # noqa: E731
    assert size(W8(weight)) == 64 * 320 + 64 * 4
    assert size(W4(weight)) == 64 * 320 / 2 + 64 * 10 * 2 * 2  # 5 bits a weight


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.25)])
def test_all_linear_and_convolution_layers_of_a_base(base: Base, bits: int, most: float) -> None:
    plain, states = unet_output(base), encode_prompts(base, PROMPTS)
    small = quantised(base, bits)
    for model in (small.unet, small.text_encoder):
        assert not [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert bits_of(small) == bits and bits_of(base) == 0
    assert 0 < relative(unet_output(small), plain) < most
    assert 0 < relative(encode_prompts(small, PROMPTS), states) < most
    assert torch.equal(unet_output(base), plain)
    assert small.sha == base.sha  # what is learnt on it is for this base


@pytest.mark.parametrize(("bits", "most"), [(8, 0.025), (4, 0.2)])
def test_error_on_the_embedded_base(bits: int, most: float) -> None:
    """Of pictures that it knows: what noise alone gives is no latent that it ever sees."""
    base = load("tiny")
    shown = np.stack([np.asarray(draw(name, "flat", 0)) for name in ("cat", "tree")])
    z = encode_pixels(base, torch.from_numpy(shown).permute(0, 3, 1, 2) / 127.5 - 1)
    given = noised(base, z.repeat(8, 1, 1, 1), torch.Generator().manual_seed(0), 0.0)
    states = encode_prompts(base, PROMPTS)
    small = quantised(base, bits)
    with torch.no_grad():
        found, wanted = (b.unet(given.x_t, given.t, encode_prompts(b, PROMPTS * 8)).sample for b in (small, base))
    assert relative(found, wanted) < most
    assert relative(encode_prompts(small, PROMPTS), states) < most


def test_pictures_are_drawn_with_it(base: Base) -> None:
    assert generate(quantised(base, 8), PROMPTS, [0, 1], steps=2).shape == (2, 16, 16, 3)


def test_gradients_are_refused(base: Base) -> None:
    small = quantised(base, 8)
    said = 'a base quantised to 8 bits gives no gradients; train a zeroth-order token on it .method.name = "zo-token"'
    x, t, states = unet_input()
    with pytest.raises(ValueError, match=said):
        small.unet(x, t, states.requires_grad_(True))
    descent = Descent(1, 2, 0.0, "float32", 0.0)
    pictures = Pictures(torch.zeros(2, 4, 8, 8), PROMPTS)
    with pytest.raises(ValueError, match=said):
        descend(small, pictures, [], descent, torch.Generator(), text_trained=False)


def test_adapters_are_refused(base: Base) -> None:
    small = quantised(base, 4)
    settings = Settings(Descent(1, 2, 0.0, "float32", 0.0), 1e-3, 1e-3, True)
    with pytest.raises(
        ValueError, match="a base quantised to 4 bits cannot be adapted layer by layer; load it without"
    ):
        fit(small, Pictures(torch.zeros(2, 4, 8, 8), PROMPTS), Shared(), {}, seed=0, settings=settings)
    with (
        pytest.raises(ValueError, match="cannot be adapted layer by layer"),
        adapters.adapted(small, random_lora(base, 0)),
    ):
        pass


def test_bad_input_is_refused(base: Base) -> None:
    for bits in (0, 2, 16):
        with pytest.raises(ValueError, match=rf"zo\.bits must be 8 or 4, or 0 for weights as they are; got {bits}"):
            quantised(base, bits)
    with pytest.raises(ValueError, match="quantised to 8 bits cannot be quantised once more"):
        quantised(quantised(base, 8), 4)
    with pytest.raises(ValueError, match="padded by 'reflect' cannot be quantised"):
        quantise_layers(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("bits", [8, 4])
def test_gpu_computes_the_same(bits: int) -> None:
    small = quantised(tiny_base(), bits)
    x, t, states = unet_input()
    unet = copy.deepcopy(small.unet).cuda()
    with torch.no_grad():
        found = unet(x.cuda(), t.cuda(), states.cuda()).sample.cpu()
    torch.testing.assert_close(found, unet_output(replace(small)), rtol=0, atol=1e-3)
