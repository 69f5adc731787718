import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from models import tiny_base, unet_output
from torch import Tensor, nn

from fedsd.base import adapters
from fedsd.base.denoise import encode_prompts
from fedsd.base.load import Base
from fedsd.base.rotation import cayley, factor_sizes
from fedsd.base.training import Descent, Fit, Pictures, Shared, diffusion_loss
from fedsd.methods import soda
from fedsd.methods.soda import Settings, adapted, compose, directions, fit, fresh, low_rank, merged, targets, trainable
from fedsd.store import export_diffusers
from fedsd.tangent_mean import tangent_mean

CAPTIONS = ["a cat", "two dogs", "the moon", "a red car"]
DESCENT = Descent(steps=3, batch_size=4, min_snr_gamma=0.0, precision="float32", caption_dropout=0.1)
SETTINGS = Settings(DESCENT, shift_lr=1e-2, turn_lr=1e-2, text_encoder=False)
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # 32x16
CONVOLUTION = "unet.down_blocks.1.resnets.0.conv1"  # 32x16x3x3
FORMS = ["svd", "lq"]


@pytest.fixture(autouse=True)
def no_change_stays(base: Base) -> Iterator[None]:
    before = layout(base)
    yield
    assert layout(base) == before
    assert not any(p.requires_grad for model in (base.unet, base.text_encoder) for p in model.parameters())


def layout(base: Base) -> list[tuple[str, str, int]]:
    """Every module by name and class, and where its weight lies."""
    return [
        (name, type(module).__name__, id(getattr(module, "weight", None)))
        for model in (base.unet, base.text_encoder)
        for name, module in model.named_modules()
    ]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    detail = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return Pictures(0.3 * detail + 3 * detail.mean((2, 3), keepdim=True), CAPTIONS)


def random_change(
    base: Base, seed: int, text_encoder: bool = True, convolutions: bool = True, size: float = 0.2
) -> Shared:
    """An adapter of every layer, strong enough to be seen in the output."""
    rng = np.random.default_rng(seed)
    zeros = fresh(base, tuple(targets(base, text_encoder, convolutions)))
    return Shared(arrays={k: (size * rng.standard_normal(v.shape)).astype(np.float32) for k, v in zeros.items()})


def outputs(base: Base) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return unet_output(base), encode_prompts(base, CAPTIONS)


def weight_of(base: Base, layer: str) -> Tensor:
    component, _, path = layer.partition(".")
    found: Tensor = getattr(base, component).get_submodule(path).weight
    return found.detach()


def trained(base: Base, pictures: Pictures, *, steps: int = 3, **changes: object) -> Fit:
    settings = replace(SETTINGS, descent=replace(DESCENT, steps=steps), **changes)
    return fit(base, pictures, Shared(), {}, seed=0, settings=settings)


def loss_on(base: Base, pictures: Pictures) -> float:
    """The mean loss over 128 fixed draws, with whatever the base carries."""
    with torch.no_grad():
        states = encode_prompts(base, pictures.captions).repeat(32, 1, 1)
        latents = pictures.latents.repeat(32, 1, 1, 1)
        return float(diffusion_loss(base, latents, states, torch.Generator().manual_seed(9), 0))


@pytest.mark.parametrize("optimiser", soda.OPTIMISERS)
@pytest.mark.parametrize("form", FORMS)
def test_it_starts_as_the_base(base: Base, form: str, optimiser: str) -> None:
    settings = replace(SETTINGS, form=form, optimiser=optimiser)
    layers = tuple(targets(base, text_encoder=True, convolutions=True))
    plain = outputs(base)
    with trainable(base, fresh(base, layers), layers, settings) as changes:
        assert list(changes) == list(layers)
        for ours, wanted in zip(outputs(base), plain, strict=True):
            assert torch.equal(ours, wanted)
    for ours, wanted in zip(outputs(base), plain, strict=True):
        assert torch.equal(ours, wanted)


def test_targets_are_attention_and_convolutions(base: Base) -> None:
    attention = list(adapters.target_shapes(base))
    both = targets(base, text_encoder=True, convolutions=True)
    assert list(targets(base, text_encoder=True, convolutions=False)) == attention == list(both)[: len(attention)]
    added = {layer for layer in both if layer not in attention}
    assert CONVOLUTION in added and not {"unet.conv_in", "unet.conv_out"} & added
    assert all(isinstance(both[layer], nn.Conv2d) for layer in added)
    assert len(added) == sum(isinstance(m, nn.Conv2d) for m in base.unet.modules()) - 2


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
def test_merged_weight_is_that_of_the_equation(base: Base, layer: str) -> None:
    """W' = U diag(relu(S + δ)) Vᵀ Rᵀ with R in full, by numpy in float64."""
    arrays = random_change(base, 1, size=0.5).arrays
    shared = Shared(arrays={k: v for k, v in arrays.items() if k.startswith(f"{layer}.")})
    W0 = weight_of(base, layer)
    U, S, Vt = np.linalg.svd(W0.double().flatten(1).numpy(), full_matrices=False)
    spectrum = np.maximum(S + arrays[f"{layer}.shift"], 0)
    R, turn = torch.ones(1, 1), torch.from_numpy(arrays[f"{layer}.turn"])
    for size in factor_sizes(W0.shape[1]):
        triangle, turn = turn[: size * (size - 1) // 2], turn[size * (size - 1) // 2 :]
        R = torch.kron(R, cayley(triangle, size))
    torch.testing.assert_close(R @ R.T, torch.eye(len(R)), rtol=0, atol=1e-5)
    shifted = ((U * spectrum) @ Vt).reshape(W0.shape)
    wanted = torch.from_numpy(np.einsum("oj...,ij->oi...", shifted, R.double().numpy())).float()
    found = merged(base, shared, "svd")
    assert list(found) == [layer]
    torch.testing.assert_close(found[layer], wanted, rtol=0, atol=1e-5)
    moved = torch.linalg.svdvals(found[layer].flatten(1))
    torch.testing.assert_close(moved, torch.from_numpy(np.sort(spectrum)[::-1].copy()).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_merged_model_is_the_one_in_training(base: Base, form: str) -> None:
    shared, plain = random_change(base, 1), outputs(base)
    layers = tuple(targets(base, text_encoder=True, convolutions=True))
    with trainable(base, shared.arrays, layers, replace(SETTINGS, form=form)):
        training = outputs(base)
    with adapted(base, shared, form):
        found = outputs(base)
    for ours, wanted, before in zip(found, training, plain, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
        assert (ours - before).abs().max() > 0.05
    assert all(torch.equal(a, b) for a, b in zip(outputs(base), plain, strict=True))


@pytest.mark.parametrize("optimiser", soda.OPTIMISERS)
@pytest.mark.parametrize("form", FORMS)
def test_it_learns_four_pictures(base: Base, pictures: Pictures, form: str, optimiser: str) -> None:
    result = trained(base, pictures, steps=25, form=form, optimiser=optimiser, convolutions=form == "svd", turn_lr=3e-2)
    before = loss_on(base, pictures)
    with adapted(base, result.shared, form):
        assert loss_on(base, pictures) < 0.97 * before
    for kind in ("shift", "turn"):
        assert all(v.any() for k, v in result.shared.arrays.items() if k.endswith(kind))
    assert result.own == {} and result.shared.lora == {}


@pytest.mark.parametrize("optimiser", soda.OPTIMISERS)
def test_training_goes_on_where_it_stopped(base: Base, pictures: Pictures, optimiser: str) -> None:
    start = random_change(base, 2, convolutions=False)
    still = Settings(replace(DESCENT, steps=1), 1e-12, 1e-12, text_encoder=True, optimiser=optimiser)
    again = fit(base, pictures, start, {}, seed=1, settings=still).shared.arrays
    assert again.keys() == start.arrays.keys()
    for name, values in start.arrays.items():
        np.testing.assert_allclose(again[name], values, rtol=0, atol=1e-5)


def test_half_precision_trains_float32_numbers(base: Base, pictures: Pictures) -> None:
    result = fit(
        base, pictures, Shared(), {}, seed=0, settings=replace(SETTINGS, descent=replace(DESCENT, precision="bfloat16"))
    )
    wanted = trained(base, pictures)
    assert result.progress.loss_first == pytest.approx(wanted.progress.loss_first, rel=0.03)
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in result.shared.arrays.values())


def test_counts_on_sd_15() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    sd15 = replace(tiny_base(), unet=unet)
    layers = tuple(targets(sd15, text_encoder=False, convolutions=False))
    assert len(layers) == 128
    assert sum(values.size for values in fresh(sd15, layers).values()) == 109_558


def test_mean_of_clients_is_a_rotation_between_them(base: Base) -> None:
    clients = [random_change(base, seed) for seed in (1, 2)]
    mean = Shared(arrays=tangent_mean([client.arrays for client in clients], [1, 1]))
    for layer in (LINEAR, CONVOLUTION):
        W0 = weight_of(base, layer)
        shift = sum(client.arrays[f"{layer}.shift"] for client in clients) / 2
        moved = torch.linalg.svdvals(merged(base, mean, "svd")[layer].flatten(1))
        spectrum = (torch.linalg.svdvals(W0.flatten(1)) + torch.from_numpy(shift)).clamp(min=0)
        torch.testing.assert_close(moved, spectrum.sort(descending=True).values, rtol=0, atol=1e-5)


def test_subject_and_style_are_composed(base: Base) -> None:
    """Small changes add up, and either alone is what it was."""
    subject, style = (
        Shared(arrays={k: np.abs(v) if k.endswith("shift") else v for k, v in change.arrays.items()})
        for change in (random_change(base, seed, size=1e-3) for seed in (1, 2))
    )
    assert all(np.array_equal(v, subject.arrays[k]) for k, v in compose([subject, style], [1, 0]).arrays.items())
    together = merged(base, compose([subject, style], [1, 1]), "svd")
    alone = [merged(base, one, "svd") for one in (subject, style)]
    for layer, W in together.items():
        W0 = weight_of(base, layer)
        added = sum(found[layer] - W0 for found in alone)
        assert torch.linalg.norm(W - W0 - added) < 0.02 * torch.linalg.norm(added)
    strong = compose([random_change(base, seed, size=2) for seed in (1, 2)], [1, 0.5])
    shifts = {k: v if k.endswith("turn") else np.zeros_like(v) for k, v in strong.arrays.items()}
    for layer, W in merged(base, Shared(arrays=shifts), "svd").items():  # still a rotation: no singular value moves
        wanted = torch.linalg.svdvals(weight_of(base, layer).flatten(1))
        torch.testing.assert_close(torch.linalg.svdvals(W.flatten(1)), wanted, rtol=0, atol=1e-5)


def test_stock_diffusers_opens_the_exported_weights(base: Base, tmp_path: Path) -> None:
    shared = random_change(base, 3)
    with adapted(base, shared, "svd"):
        wanted = outputs(base)
    folder = soda.export_weights(base, shared, "svd", tmp_path)
    stock = replace(
        base, unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        text_encoder=type(base.text_encoder).from_pretrained(folder / "text_encoder").eval(),
    )  # fmt: skip
    assert isinstance(stock.pipeline(), StableDiffusionPipeline)
    for ours, theirs in zip(wanted, outputs(stock), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_low_rank_export_reports_its_error(base: Base, tmp_path: Path) -> None:
    shared = random_change(base, 3, convolutions=False)
    lora, error = low_rank(base, shared, "svd", 2)
    changes = {layer: (W - weight_of(base, layer)).numpy() for layer, W in merged(base, shared, "svd").items()}
    lost = sum(np.square(changes[layer] - factor.B @ factor.A).sum() for layer, factor in lora.items())
    assert error == pytest.approx((lost / sum(np.square(c).sum() for c in changes.values())) ** 0.5, rel=1e-4)
    assert 0.3 < error < 1
    whole, nothing = low_rank(base, shared, "svd", 32)
    assert nothing < 1e-5
    with adapted(base, shared, "svd"):
        wanted = outputs(base)
    stock = replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))
    stock.pipeline().load_lora_weights(export_diffusers(whole, tmp_path).parent)
    for ours, theirs in zip(wanted, outputs(stock), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_directions_are_those_of_base_form_and_layers(base: Base, tmp_path: Path) -> None:
    same = directions(base, SETTINGS)
    assert same == directions(base, replace(SETTINGS, cache=tmp_path)) == directions(base, replace(SETTINGS))
    other = tiny_base(seed=1)
    assert len({same, directions(other, SETTINGS), directions(base, replace(SETTINGS, form="lq"))}) == 3


def test_what_is_not_for_this_base_is_refused(base: Base, pictures: Pictures) -> None:
    good = random_change(base, 0, text_encoder=False, convolutions=False).arrays

    def refused(arrays: dict[str, np.ndarray], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            fit(base, pictures, Shared(arrays=arrays), {}, seed=0, settings=SETTINGS)

    refused(
        {k: v for k, v in good.items() if k != f"{LINEAR}.turn"}, rf"lacks \['{LINEAR}\.turn'\] and has unknown \[\]"
    )
    refused(dict(random_change(base, 0).arrays), r"lacks \[\] and has unknown \['text_encoder")
    short = {**good, f"{LINEAR}.shift": np.zeros(3, np.float32)}
    refused(short, rf"{LINEAR}\.shift has shape \(3,\) but this base needs \(16,\); it belongs to another base")
    with pytest.raises(ValueError, match=r"a\.b is neither a <layer>\.shift nor a <layer>\.turn"):
        merged(base, Shared(arrays={"a.b": np.zeros(1, np.float32)}), "svd")
    with pytest.raises(ValueError, match=r"changes unet\.nowhere, which this base does not have"):
        merged(base, Shared(arrays={"unet.nowhere.shift": np.zeros(1, np.float32)}), "svd")
    with pytest.raises(ValueError, match=r"is a convolution; export whole weights"):
        low_rank(base, random_change(base, 0), "svd", 2)
    with pytest.raises(ValueError, match=r"soda\.form must be one of svd, lq .* got 'qr' and 'adamw'"):
        replace(SETTINGS, form="qr")


def test_loss_that_is_not_finite_names_both_rates(base: Base, pictures: Pictures) -> None:
    with pytest.raises(ValueError, match=r"lower soda\.shift-lr \(1e\+30\) and soda\.turn-lr \(0\.01\)"):
        trained(base, pictures, steps=5, shift_lr=1e30)
