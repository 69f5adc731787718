import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from models import random_lora, tiny_base, unet_output
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base import adapters
from fedsd.base.denoise import encode_prompts
from fedsd.base.load import Base
from fedsd.lowrank import Factor, dense
from fedsd.store import export_diffusers

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # 32x16: d_out and d_in differ


def outputs(base: Base) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return unet_output(base), encode_prompts(base, ["a cat", "two dogs"])


def layout(base: Base) -> list[tuple[str, str]]:
    """Every module by name and class, and what the models say of themselves."""
    models = (base.unet, base.text_encoder)
    return [(name, type(module).__name__) for model in models for name, module in model.named_modules()] + [
        ("attributes", str(sorted(vars(model)))) for model in models
    ]


def equal(left: dict[str, Factor], right: dict[str, Factor]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[k].B, right[k].B) and np.array_equal(left[k].A, right[k].A) for k in left
    )


@pytest.fixture(params=["one rank", "unequal ranks", "convolutions"])
def lora(base: Base, request: pytest.FixtureRequest) -> dict[str, Factor]:
    ranks = (4,) if request.param == "one rank" else (1, 4, 2, 7)
    return random_lora(base, 3, ranks, convolutions=request.param == "convolutions")


def test_output_is_that_of_the_merged_weights(base: Base, lora: dict[str, Factor]) -> None:
    merged = replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))
    for layer, factor in lora.items():
        component, _, path = layer.partition(".")
        weight = getattr(merged, component).get_submodule(path).weight
        weight.data += torch.from_numpy(dense(factor)).view(weight.shape)
    with adapters.adapted(base, lora):
        found = outputs(base)
    for ours, oracle, plain in zip(found, outputs(merged), outputs(base), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-5)
        assert (ours - plain).abs().max() > 0.1


def test_every_layer_is_accepted(base: Base, lora: dict[str, Factor]) -> None:
    with adapters.adapted(base, lora):
        assert equal(adapters.current(base), lora)
    attention = [layer for layer in lora if not layer.endswith((*adapters.CONVOLUTIONS, adapters.TIME_PROJECTION))]
    assert len(attention) == 4 * 2 * 4 + 2 * 4 == 40  # four transformer blocks of two attentions, two text layers
    assert adapters.current(base) == {}


def test_layer_that_peft_drops_is_an_error(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = adapters._attach
    monkeypatch.setattr(adapters, "_attach", lambda b, ranks: attach(b, {k: r for k, r in ranks.items() if k != LAYER}))
    with (
        pytest.raises(RuntimeError, match=rf"accepted 39 of 40 adapter layers; lost \['{LAYER}'\]"),
        adapters.adapted(base, random_lora(base, 0)),
    ):
        pass
    assert adapters.current(base) == {}


def test_scale_other_than_one_is_an_error(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    config = adapters.LoraConfig
    monkeypatch.setattr(adapters, "LoraConfig", lambda **options: config(**{**options, "alpha_pattern": {}}))
    with (
        pytest.raises(RuntimeError, match=r"PEFT scales unet.* by 0\.25, not 1"),
        adapters.adapted(base, random_lora(base, 0)),
    ):
        pass


def test_base_is_left_as_it_was(base: Base, lora: dict[str, Factor], recwarn: pytest.WarningsRecorder) -> None:
    before, plain = layout(base), outputs(base)
    for _ in range(2):
        with adapters.adapted(base, lora):
            assert layout(base) != before
        with adapters.trainable(base, {}, 2, 0, text_encoder=True) as parameters:
            torch.nn.init.ones_(parameters["unet"][0])
        assert layout(base) == before
        assert all(torch.equal(a, b) for a, b in zip(outputs(base), plain, strict=True))
        assert not any(p.requires_grad for m in (base.unet, base.text_encoder) for p in m.parameters())
    assert [str(w.message) for w in recwarn if "adapter" in str(w.message)] == []


def test_base_is_left_as_it_was_by_an_exception(base: Base) -> None:
    before = layout(base)
    with pytest.raises(RuntimeError, match="stop"), adapters.adapted(base, random_lora(base, 0)):
        raise RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"), adapters.trainable(base, {}, 2, 0, text_encoder=True):
        raise RuntimeError("stop")
    assert layout(base) == before
    assert not any(p.requires_grad for m in (base.unet, base.text_encoder) for p in m.parameters())


def test_empty_adapter_is_the_base(base: Base) -> None:
    before, plain = layout(base), outputs(base)
    with adapters.adapted(base, {}):
        assert layout(base) == before
        assert all(torch.equal(a, b) for a, b in zip(outputs(base), plain, strict=True))


def test_adapter_of_some_layers_changes_those_alone(base: Base) -> None:
    lora = {LAYER: random_lora(base, 1)[LAYER]}
    plain = outputs(base)
    with adapters.adapted(base, lora):
        unet, text = outputs(base)
        assert equal(adapters.current(base), lora)
    assert not torch.equal(unet, plain[0]) and torch.equal(text, plain[1])


def test_unknown_layer_is_refused(base: Base) -> None:
    lora = {"unet.mid_block.attentions.7.to_q": Factor(np.zeros((4, 1)), np.zeros((1, 4)))}
    with (
        pytest.raises(ValueError, match=r"changes unet\.mid_block\.attentions\.7\.to_q, which this base does not have"),
        adapters.adapted(base, lora),
    ):
        pass


def test_transposed_layer_is_refused(base: Base) -> None:
    lora = {LAYER: Factor(np.zeros((16, 2)), np.zeros((2, 32)))}
    with (
        pytest.raises(ValueError, match=r"attn2\.to_k is 16x32 but the base's is 32x16; it belongs to another base"),
        adapters.adapted(base, lora),
    ):
        pass


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_rank_that_does_not_fit_is_refused(base: Base, rank: int) -> None:
    said = rf"LoRA rank {rank} does not fit unet\..*, which is 16x16; choose a rank from 1 to 16 \(lora\.ranks, or rank"
    with pytest.raises(ValueError, match=said):
        adapters.check_rank(base, rank)
    with pytest.raises(ValueError, match=said), adapters.trainable(base, {}, rank, 0, text_encoder=True):
        pass
    adapters.check_rank(base, 16)


def started(base: Base, rank: int = 4, seed: int = 0, text_encoder: bool = True) -> dict[str, Factor]:
    with adapters.trainable(base, {}, rank, seed, text_encoder):
        return adapters.current(base)


def test_fresh_adapter_adds_nothing_and_has_loras_variance(base: Base) -> None:
    lora = started(base, rank=8)
    assert all(not factor.B.any() for factor in lora.values())
    rows = np.concatenate([factor.A.ravel() for factor in lora.values() if factor.shape[1] == 16])
    assert rows.size > 4000
    assert rows.var() == pytest.approx(1 / (3 * 16), rel=0.05) and abs(rows.mean()) < 0.01
    with adapters.trainable(base, {}, 8, 0, text_encoder=True):
        carried = outputs(base)
    for ours, plain in zip(carried, outputs(base), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def test_seed_decides_the_start(base: Base) -> None:
    assert equal(started(base, seed=5), started(base, seed=5))
    first, other = started(base, seed=5), started(base, seed=6)
    assert not any(np.array_equal(first[layer].A, other[layer].A) for layer in first)


def test_warm_start_is_the_given_adapter(base: Base) -> None:
    lora = random_lora(base, 2)
    with adapters.trainable(base, lora, 4, 0, text_encoder=True) as parameters:
        assert equal(adapters.current(base), lora)
        assert sum(p.numel() for part in parameters.values() for p in part) == sum(
            f.B.size + f.A.size for f in lora.values()
        )
        torch.nn.init.zeros_(parameters["unet"][0])
    assert all(np.abs(factor.A).max() > 0 for factor in lora.values())  # the given adapter is not trained in place


def test_start_that_does_not_fit_is_refused(base: Base) -> None:
    lora = random_lora(base, 2)
    without = {layer: factor for layer, factor in lora.items() if layer != LAYER}
    with (
        pytest.raises(ValueError, match=rf"start from lacks \['{LAYER}'\] and has unknown \[\]"),
        adapters.trainable(base, without, 4, 0, text_encoder=True),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"lacks \[\] and has unknown \['text_encoder\.enc"),
        adapters.trainable(base, lora, 4, 0, text_encoder=False),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"must have rank 8 but unet\..* has rank 4; resize it first"),
        adapters.trainable(base, lora, 8, 0, text_encoder=True),
    ):
        pass


@pytest.mark.parametrize("text_encoder", [True, False])
def test_only_the_adapter_is_trained(base: Base, text_encoder: bool) -> None:
    with adapters.trainable(base, {}, 4, 0, text_encoder) as parameters:
        assert list(parameters) == (["unet", "text_encoder"] if text_encoder else ["unet"])
        trained = {id(p) for part in parameters.values() for p in part}
        for model in (base.unet, base.text_encoder):
            for name, parameter in model.named_parameters():
                assert parameter.requires_grad == ("lora_" in name) == (id(parameter) in trained)
        assert any(layer.startswith("text_encoder.") for layer in adapters.current(base)) == text_encoder


def test_factors_stay_float32_on_a_bfloat16_base(base: Base) -> None:
    half = replace(base, unet=copy.deepcopy(base.unet).bfloat16())
    with adapters.trainable(half, {}, 4, 0, text_encoder=True) as parameters:
        assert {p.dtype for part in parameters.values() for p in part} == {torch.float32}
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("ranks", [(4,), (1, 4, 2, 7)])
@pytest.mark.parametrize("convolutions", [False, True])
def test_stock_diffusers_opens_the_export_with_the_same_output(
    base: Base, ranks: tuple[int, ...], convolutions: bool, tmp_path: Path
) -> None:
    lora = random_lora(base, 8, ranks, convolutions=convolutions)
    with adapters.adapted(base, lora):
        unet, text = outputs(base)
    stock = replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))
    stock.pipeline().load_lora_weights(export_diffusers(lora, tmp_path).parent)
    assert len(list(adapters._layers(stock))) == len(lora)
    for theirs, ours in zip(outputs(stock), (unet, text), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_counts_on_sd_15() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    sd15 = replace(tiny_base(), unet=unet, text_encoder=text_encoder)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    for rank, counts in {16: (3_188_736, 1_179_648), 4: (797_184, 294_912)}.items():
        with adapters.trainable(sd15, {}, rank, 0, text_encoder=True) as parameters:
            assert tuple(sum(p.numel() for p in part) for part in parameters.values()) == counts
            assert [len(part) // 2 for part in parameters.values()] == [128, 48]


def test_target_names_and_shapes(base: Base) -> None:
    shapes = adapters.target_shapes(base)
    assert shapes[LAYER] == (32, 16)
    assert sum(layer.startswith("text_encoder.") for layer in shapes) == 8
    assert list(adapters.target_shapes(base, text_encoder=False)) == [k for k in shapes if k.startswith("unet.")]
