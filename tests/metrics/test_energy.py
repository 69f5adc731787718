import numpy as np
import pytest

from fedsd.lowrank import Factor
from fedsd.metrics.energy import TEXT_ENCODER, UNET, depth_energy, kept, layer_energy, place_of

Q = "attentions.0.transformer_blocks.0.attn1.to_q"


def diagonal(*values: float) -> Factor:
    return Factor(np.diag(np.array(values, dtype=float)), np.eye(len(values)))


def test_energy_of_a_layer_is_the_sum_of_its_squared_singular_values() -> None:
    draw = np.random.default_rng(0)
    factor = Factor(draw.normal(size=(20, 3)), draw.normal(size=(3, 30)))
    wanted = (np.linalg.svd(factor.B @ factor.A, compute_uv=False) ** 2).sum()
    assert layer_energy({"unet.mid_block." + Q: factor}) == {"unet.mid_block." + Q: pytest.approx(wanted, rel=1e-12)}


def test_layers_come_in_order_of_depth_with_the_text_encoder_apart() -> None:
    names = [
        f"unet.down_blocks.1.{Q}", f"unet.down_blocks.10.{Q}", f"unet.mid_block.{Q}", f"unet.up_blocks.0.{Q}",
        f"unet.up_blocks.2.{Q}", "unet.conv_out",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "text_encoder.encoder.layers.11.self_attn.q_proj",
    ]  # fmt: skip
    lora = dict.fromkeys(reversed(names), diagonal(1))
    assert list(layer_energy(lora)) == names
    places = list(depth_energy(lora))
    assert [p.name for p in places] == ["down 1", "down 10", "mid", "up 0", "up 2", "other", "layer 0", "layer 11"]
    assert [p.component for p in places] == [UNET] * 6 + [TEXT_ENCODER] * 2


def test_energy_is_summed_over_the_layers_of_a_place() -> None:
    lora = {
        "unet.mid_block.attentions.0.to_q": diagonal(3, 4),
        "unet.mid_block.attentions.0.to_k": diagonal(1, 2),
        "text_encoder.encoder.layers.0.self_attn.q_proj": diagonal(2, 0),
    }
    assert depth_energy(lora) == {
        place_of("unet.mid_block.x"): pytest.approx(30),
        place_of("text_encoder.encoder.layers.0.x"): pytest.approx(4),
    }


def test_opposite_updates_cancel_in_a_mean_and_equal_ones_do_not() -> None:
    up, down = {"unet.mid_block.q": diagonal(2, 0)}, {"unet.mid_block.q": diagonal(-2, 0)}
    half = {"unet.mid_block.q": diagonal(1, 0)}
    assert kept({"unet.mid_block.q": diagonal(0, 0)}, {"c0": up, "c1": down}) == pytest.approx(0)
    assert kept(up, {"c0": up, "c1": up}) == pytest.approx(1)
    assert kept(half, {"c0": up, "c1": up}) == pytest.approx(0.25)


def test_adapters_without_energy_are_refused() -> None:
    with pytest.raises(ValueError, match="1 adapters hold no energy together; train them"):
        kept({"q": diagonal(1)}, {"c0": {"q": diagonal(0)}})
