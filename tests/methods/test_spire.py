import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from models import random_lora, tiny_base, tiny_unet, unet_input, unet_output
from torch import Tensor

from fedsd.base import adapters
from fedsd.base.denoise import encode_pixels, encode_prompts
from fedsd.base.load import Base, load
from fedsd.base.training import Descent, Fit, Pictures, Shared, diffusion_loss
from fedsd.data import drawn
from fedsd.lowrank import Array
from fedsd.methods.spire import LAYER, Settings, adapt, adapted, carried, export, fit, vector, width
from fedsd.strategies.rules.flexlora import flexlora
from fedsd.tangent_mean import tangent_mean

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]
DESCENT = Descent(steps=3, batch_size=4, min_snr_gamma=0.0, precision="float32", caption_dropout=0.1)
SETTINGS = Settings(DESCENT, lr=1e-2, text_lr=1e-2, embedding_lr=1e-1, text_encoder=False)
FORMS = [("bias", "lora"), ("bias", "full"), ("projected", "lora"), ("projected", "full")]


def pictures(colour: float = 1.0) -> Pictures:
    """Four latents of one colour, or of its opposite, with some detail."""
    detail = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    direction = torch.tensor([1.0, -1.0, 0.5, 2.0]).view(1, 4, 1, 1)
    return Pictures(0.3 * detail + colour * direction, CAPTIONS)


def trained(base: Base, *, steps: int = 3, start: Shared | None = None, seed: int = 0, **changes: object) -> Fit:
    settings = replace(SETTINGS, descent=replace(DESCENT, steps=steps), **changes)
    return fit(base, pictures(), start or Shared(), {}, seed=seed, settings=settings)


def a_v(base: Base, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(width(base)).astype(np.float32)


def loss_on(base: Base, of: Pictures, shared: Shared, v: Array) -> float:
    """The mean loss over 128 fixed draws of timestep and noise."""
    with adapted(base, shared, v), torch.no_grad():
        states = encode_prompts(base, of.captions).repeat(32, 1, 1)
        return float(diffusion_loss(base, of.latents.repeat(32, 1, 1, 1), states, torch.Generator().manual_seed(9), 0))


@pytest.fixture(autouse=True)
def no_hook_stays(base: Base) -> Iterator[None]:
    yield
    assert not base.unet.time_embedding.linear_2._forward_hooks
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


def test_no_embedding_is_the_base_bit_for_bit(base: Base) -> None:
    plain = unet_output(base)
    with adapted(base, Shared(), np.zeros(width(base), np.float32)):
        assert torch.equal(unet_output(base), plain)
    with adapted(base, Shared(), a_v(base)):
        assert (unet_output(base) - plain).abs().max() > 0.05
    assert torch.equal(unet_output(base), plain)


def test_embedding_is_diffusers_identity_class_embedding_and_a_bias(base: Base) -> None:
    v = a_v(base)
    identity = tiny_unet(class_embed_type="identity").eval()
    identity.load_state_dict(base.unet.state_dict())  # the identity adds no key
    shifted = replace(base, unet=copy.deepcopy(base.unet))
    shifted.unet.time_embedding.linear_2.bias.data += torch.from_numpy(v)
    with torch.no_grad():
        by_class: Tensor = identity(*unet_input(), class_labels=torch.from_numpy(v).expand(2, -1)).sample
    with adapted(base, Shared(), v):
        found = unet_output(base)
    torch.testing.assert_close(found, by_class, rtol=0, atol=1e-5)
    torch.testing.assert_close(unet_output(shifted), by_class, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", ["none", "unet", "both"])
def test_stock_diffusers_opens_the_export_with_the_same_output(base: Base, layers: str, tmp_path: Path) -> None:
    v = a_v(base)
    lora = {} if layers == "none" else random_lora(base, 2, (1, 4, 2), text_encoder=layers == "both")
    with adapted(base, Shared(lora), v):
        unet, text = unet_output(base), encode_prompts(base, CAPTIONS)
    stock = replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))
    stock.pipeline().load_lora_weights(export(base, Shared(lora), v, tmp_path).parent)
    torch.testing.assert_close(unet_output(stock), unet, rtol=0, atol=1e-5)
    torch.testing.assert_close(encode_prompts(stock, CAPTIONS), text, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("form", "backbone"), FORMS)
def test_it_learns_a_backbone_and_an_embedding(base: Base, form: str, backbone: str) -> None:
    plain, nothing = unet_output(base), np.zeros(width(base), np.float32)
    result = trained(base, steps=40, lr=3e-3, form=form, backbone=backbone, size=16)
    assert torch.equal(unet_output(base), plain)
    v = vector(result.shared, result.own)
    untrained = loss_on(base, pictures(), Shared(), nothing)
    assert loss_on(base, pictures(), result.shared, v) < 0.99 * untrained
    assert loss_on(base, pictures(), result.shared, nothing) < 0.99 * untrained  # the population's model learns too
    assert list(result.own) == ["e" if form == "projected" else "v"]
    assert result.own.popitem()[1].shape == ((16,) if form == "projected" else (width(base),))
    maps = {"embedding.W1", "embedding.W2"} if form == "projected" else set()
    whole = {f"unet.{name}" for name, _ in base.unet.named_parameters()} - {f"{LAYER}.bias"}
    assert set(result.shared.arrays) == maps | (whole if backbone == "full" else set())
    assert (result.shared.lora == {}) == (backbone == "full")


@pytest.mark.parametrize(("form", "backbone"), FORMS)
def test_training_goes_on_where_it_stopped(base: Base, form: str, backbone: str) -> None:
    still = {"form": form, "backbone": backbone, "size": 16}
    first = trained(base, **still)
    settings = replace(SETTINGS, descent=replace(DESCENT, steps=1), lr=1e-12, embedding_lr=1e-12, **still)
    again = fit(base, pictures(), first.shared, first.own, seed=1, settings=settings)
    for name, values in first.own.items():
        np.testing.assert_allclose(again.own[name], values, rtol=0, atol=1e-6)
    for name, values in first.shared.arrays.items():
        np.testing.assert_allclose(again.shared.arrays[name], values, rtol=0, atol=1e-6)
    for layer, factor in first.shared.lora.items():
        np.testing.assert_allclose(again.shared.lora[layer].A, factor.A, rtol=0, atol=1e-6)


def test_full_backbone_comes_back_as_it_was_trained(base: Base) -> None:
    """The change of the weights that is shared, added to the base, is the model that was trained."""
    moved = trained(base, backbone="full", lr=1e-1).shared
    copied = copy.deepcopy(base.unet)
    for name, change in moved.arrays.items():
        copied.get_parameter(name.removeprefix("unet.")).data += torch.from_numpy(change)
    with carried(base, moved):
        assert torch.equal(unet_output(base), unet_output(replace(base, unet=copied)))
    assert not torch.equal(unet_output(replace(base, unet=copied)), unet_output(base))


@pytest.mark.parametrize(("form", "backbone"), FORMS)
def test_adapting_moves_the_embedding_alone(base: Base, form: str, backbone: str) -> None:
    settings = replace(
        SETTINGS, form=form, backbone=backbone, size=16, embedding_lr=1e-1,
        descent=replace(DESCENT, steps=25, batch_size=8),
    )  # fmt: skip
    shared = trained(base, form=form, backbone=backbone, size=16).shared
    with carried(base, shared):
        population = unet_output(base)
    kept = {layer: (factor.A.copy(), factor.B.copy()) for layer, factor in shared.lora.items()}
    unseen = pictures(-1.0)
    result = adapt(base, unseen, shared, {}, seed=1, settings=settings)
    assert result.shared is shared
    for layer, (A, B) in kept.items():
        assert np.array_equal(shared.lora[layer].A, A) and np.array_equal(shared.lora[layer].B, B)
    v, nothing = vector(shared, result.own), np.zeros(width(base), np.float32)
    assert v.any() and loss_on(base, unseen, shared, v) < 0.995 * loss_on(base, unseen, shared, nothing)
    with adapted(base, shared, nothing):
        assert torch.equal(unet_output(base), population)  # nothing is forgotten


def test_an_unseen_style_is_learnt_by_128_numbers() -> None:
    """On the embedded base, whose U-Net has 4.2 million weights; drawings that were not trained on count."""
    base = load("tiny")
    shown, held_out = (drawings(base, "pixel", seed) for seed in (0, 100))
    settings = replace(SETTINGS, embedding_lr=0.2, descent=replace(DESCENT, steps=12, batch_size=8))
    result = adapt(base, shown, Shared(), {}, seed=0, settings=settings)
    v, nothing = result.own["v"], np.zeros(128, np.float32)
    assert v.size == width(base) == 128
    assert v.size / sum(p.numel() for p in base.unet.parameters()) < 0.0001
    assert loss_on(base, held_out, Shared(), v) < 0.95 * loss_on(base, held_out, Shared(), nothing)


def drawings(base: Base, look: str, seed: int) -> Pictures:
    """Four drawings of a style."""
    drawn_ = np.stack([np.asarray(drawn.draw(name, look, seed), np.float32) for name in drawn.OBJECTS[:4]])
    pixels = torch.from_numpy(drawn_).permute(0, 3, 1, 2) / 127.5 - 1
    return Pictures(encode_pixels(base, pixels), [f"a {name}" for name in drawn.OBJECTS[:4]])


def test_seed_decides_everything(base: Base) -> None:
    one, same, other = (trained(base, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.own["v"], same.own["v"])
    assert not np.array_equal(one.own["v"], other.own["v"])
    assert one.progress.loss_last == same.progress.loss_last != other.progress.loss_last


def test_embedding_is_left_out_of_some_samples(base: Base) -> None:
    """Some of the batch's time embeddings are the base's own; without dropping, none."""
    seen: list[Tensor] = []
    plain: list[Tensor] = []
    linear, first = base.unet.time_embedding.linear_2, base.unet.down_blocks[0].resnets[0]
    own = {"v": np.full(width(base), 100, np.float32)}
    of = Pictures(torch.zeros(400, 4, 8, 8), ["a cat"] * 400)
    before = linear.register_forward_hook(lambda _m, _i, out: plain.append(out.detach()))
    after = first.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1].detach()))
    try:
        for drop in (0.25, 0.0):
            settings = replace(SETTINGS, drop=drop, descent=replace(DESCENT, steps=1, batch_size=400))
            fit(base, of, Shared(), own, seed=0, settings=settings)
    finally:
        before.remove()
        after.remove()
    kept = [((s - p).abs().amax(1) > 50).float().mean().item() for s, p in zip(seen, plain, strict=True)]
    assert kept[0] == pytest.approx(0.75, abs=0.07) and kept[1] == 1


@pytest.mark.parametrize("backbone", ["lora", "full"])
def test_gauge_is_fixed(base: Base, backbone: str) -> None:
    """Two clients of opposite colours, three rounds: the bias never moves and the embeddings balance each other."""
    settings = replace(SETTINGS, lr=2e-3, backbone=backbone, descent=replace(DESCENT, steps=15, batch_size=8))
    shared, own = Shared(), [dict[str, Array](), dict[str, Array]()]
    before = base.unet.time_embedding.linear_2.bias.clone()
    for server_round in range(3):
        fits = [
            fit(base, pictures(colour), shared, own[i], seed=server_round, settings=settings)
            for i, colour in enumerate((2.0, -2.0))
        ]
        own = [dict(done.own) for done in fits]
        shared = mean_of(fits)
        assert f"{LAYER}.bias" not in shared.arrays
    assert torch.equal(base.unet.time_embedding.linear_2.bias, before)
    v = np.stack([kept["v"] for kept in own])
    assert np.linalg.norm(v.mean(0)) < 0.6 * np.linalg.norm(v, axis=1).mean()


def mean_of(fits: list[Fit]) -> Shared:
    """What a server makes of two clients of as many pictures."""
    loras = [done.shared.lora for done in fits]
    lora = flexlora(loras, [1, 1], 4).lora if loras[0] else {}
    return Shared(lora, tangent_mean([done.shared.arrays for done in fits], [1, 1]))


def test_same_model_is_written_in_two_ways(base: Base) -> None:
    """What the gauge is: a bias moved by c and all embeddings by -c."""
    v, c = a_v(base), a_v(base, 2)
    moved = Shared(arrays={f"{LAYER}.bias": c})
    with adapted(base, Shared(), v):
        one = unet_output(base)
    with adapted(base, moved, v - c):
        torch.testing.assert_close(unet_output(base), one, rtol=0, atol=1e-5)


def test_all_clients_begin_with_the_same_maps(base: Base) -> None:
    one, other = (
        fit(
            base, pictures(colour), Shared(), {}, seed=seed,
            settings=replace(SETTINGS, form="projected", lr=1e-12),
        ).shared.arrays
        for seed, colour in ((0, 1.0), (1, -1.0))
    )  # fmt: skip
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=0, atol=1e-6)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes, said in [
        ({"form": "x"}, r"spire\.form must be"), ({"backbone": "x"}, r"spire\.backbone \"lora\" or \"full\""),
        ({"drop": 1.0}, r"spire\.drop must be at least 0 and below 1, got 1\.0"), ({"size": 0}, r"spire\.size must be"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            replace(SETTINGS, **changes)


def test_what_is_not_for_this_base_is_refused(base: Base, tmp_path: Path) -> None:
    short = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"embedding v must be 64 finite numbers, got shape \(3,\); it belongs"):
        fit(base, pictures(), Shared(), {"v": short}, seed=0, settings=SETTINGS)
    with pytest.raises(ValueError, match="must be 64 finite numbers"), adapted(base, Shared(), a_v(base) * np.nan):
        pass
    with pytest.raises(ValueError, match="keeps no client embedding"):
        vector(Shared(), {"e": short})
    maps = trained(base, form="projected", size=8).shared
    with pytest.raises(ValueError, match=r"maps take 8 numbers to 64, not 16 to 64; set spire\.size"):
        trained(base, form="projected", size=16, start=maps)
    wrong = Shared(arrays={"unet.conv_in.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"conv_in\.weight has shape \(2, 2\) but the base's has \(16, 4, 3, 3\)"):
        trained(base, backbone="full", start=wrong)
    with pytest.raises(ValueError, match="does not fit a LoRA file"):
        export(base, wrong, a_v(base), tmp_path)
    half = replace(base, unet=copy.deepcopy(base.unet).bfloat16())
    with pytest.raises(ValueError, match="trains float32 weights; load the base in float32"):
        trained(half, backbone="full")


def test_base_without_such_a_bias_is_refused(base: Base) -> None:
    odd = replace(base, unet=tiny_unet(timestep_post_act="silu"))
    with pytest.raises(ValueError, match="does not end in a layer with a bias"):
        width(odd)


def test_size_on_sd_15() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    sd15 = replace(tiny_base(), unet=unet)
    assert width(sd15) == 1280
    assert width(sd15) / sum(p.numel() for p in unet.parameters()) < 0.0001


def test_adapter_of_lora_and_embedding_are_independent(base: Base) -> None:
    lora = random_lora(base, 4)
    with adapters.adapted(base, lora):
        wanted = unet_output(base)
    with adapted(base, Shared(lora), np.zeros(width(base), np.float32)):
        assert torch.equal(unet_output(base), wanted)
