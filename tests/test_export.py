"""The bytes that other programs read: names, alphas, headers; what the programs make of them is in tests/cli."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from models import tiny_base
from safetensors.numpy import load
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base import adapters
from fedsd.export import comfy_latent, embedding, for_diffusers, for_kohya, kohya_name
from fedsd.lowrank import Factor, LoRA

GOLDEN = (Path(__file__).parent / "kohya_sd15.txt").read_text().split()  # what ComfyUI and A1111 look for in SD 1.5


def texts(content: bytes) -> dict[str, str]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found


def lora_of(ranks: tuple[int, ...] = (2, 5)) -> LoRA:
    rng = np.random.default_rng(0)
    layers = ("unet.mid_block.attentions.0.to_out.0", "text_encoder.encoder.layers.0.self_attn.q_proj")
    return {
        layer: Factor(rng.normal(size=(8, r)).astype(np.float32), rng.normal(size=(r, 6)).astype(np.float32))
        for layer, r in zip(layers, ranks, strict=True)
    }


def test_sd_15_has_the_128_and_48_layers_that_other_programs_know() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        text_encoder = CLIPTextModel(text)
    sd15 = replace(tiny_base(), unet=unet, text_encoder=text_encoder)
    shapes = adapters.target_shapes(sd15)
    tensors = load(for_kohya({
        layer: Factor(np.zeros((d_out, 1), np.float32), np.zeros((1, d_in), np.float32))
        for layer, (d_out, d_in) in shapes.items()
    }))  # fmt: skip
    assert len(GOLDEN) == 128 + 48
    assert set(tensors) == {
        f"{name}.{part}" for name in GOLDEN for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    for layer, (d_out, d_in) in shapes.items():
        assert tensors[f"{kohya_name(layer)}.lora_up.weight"].shape == (d_out, 1)
        assert tensors[f"{kohya_name(layer)}.lora_down.weight"].shape == (1, d_in)


def test_alpha_is_the_rank_and_layers_of_lower_rank_are_filled_up_with_zeros() -> None:
    lora = lora_of((2, 5))
    content = for_kohya(lora, {"modelspec.title": "ink"})
    tensors = load(content)
    for layer, factor in lora.items():
        parts = ("alpha", "lora_down.weight", "lora_up.weight")
        alpha, down, up = (tensors[f"{kohya_name(layer)}.{part}"] for part in parts)
        assert alpha.shape == () and alpha == len(down) == up.shape[1] == 5
        assert not down[factor.rank :].any() and not up[:, factor.rank :].any()
        np.testing.assert_allclose(up @ down, factor.B @ factor.A, rtol=1e-6)
    said = texts(content)
    assert [said[f"ss_network_{key}"] for key in ("module", "dim", "alpha")] == ["networks.lora", "5", "5"]
    assert said["modelspec.title"] == "ink" and said["modelspec.hash_sha256"].startswith("0x")


def test_a_convolution_keeps_its_kernel() -> None:
    factor = Factor(np.ones((8, 2), np.float32), np.arange(2 * 6 * 9, dtype=np.float32).reshape(2, 54))
    tensors = load(for_kohya({"unet.down_blocks.0.resnets.0.conv1": factor}))
    down = tensors["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"]
    assert down.shape == (2, 6, 3, 3) and (down.reshape(2, 54) == factor.A).all()
    assert tensors["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"].shape == (8, 2, 1, 1)


def test_a_layer_without_a_name_there_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"vae\.decoder\.to_q is of no component that kohya's names know: unet, text_enc"
    ):
        kohya_name("vae.decoder.to_q")


@pytest.mark.parametrize("pack", [for_kohya, lambda lora, about: for_diffusers(lora, {}, about)])
def test_equal_content_is_equal_bytes(pack) -> None:
    about = {f"ss_{i}": "ünïcode" for i in range(20)}
    first = pack(lora_of(), about)
    assert all(pack(lora_of(), dict(reversed(about.items()))) == first for _ in range(5))
    assert int.from_bytes(first[:8], "little") % 8 == 0
    other = pack(lora_of((3, 5)), about)
    assert texts(first)["modelspec.hash_sha256"] != texts(other)["modelspec.hash_sha256"]


def test_a_token_is_one_tensor_under_its_name() -> None:
    assert load(embedding("<user-s>", np.arange(4.0)))["<user-s>"].tolist() == [[0, 1, 2, 3]]
    assert load(embedding("<user-s>", np.ones((2, 4))))["<user-s>"].shape == (2, 4)
    with pytest.raises(ValueError, match=r"'<user-s>' has shape \(2,\), or is not finite"):
        embedding("<user-s>", np.array([1.0, np.nan]))


def test_a_latent_is_in_comfyuis_units() -> None:
    x = np.full((1, 4, 2, 2), 0.6, np.float32)
    content = comfy_latent(x, 0.36, 0.2, {"fedsd.ksampler": "{}"})
    tensors = load(content)
    np.testing.assert_allclose(tensors["latent_tensor"], 5.0, rtol=1e-6)  # 0.6 / sqrt(0.36) / 0.2
    assert tensors["latent_format_version_0"].shape == (0,) and texts(content)["fedsd.ksampler"] == "{}"
