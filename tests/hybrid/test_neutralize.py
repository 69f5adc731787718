"""L_g on a small base: its terms by hand, what descending it does, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import random_lora, tiny_base

from fedsd.base import adapters, denoise
from fedsd.base.load import Base, weights_sha
from fedsd.hybrid import neutralize
from fedsd.hybrid.neutralize import Teaching, kl_to_normal, neutralise
from fedsd.lowrank import LoRA, stack_loras

PROMPTS = tuple(f"a {thing}" for thing in ("cat", "dog", "car", "tree", "cup"))
SPLIT = denoise.Split(10, 3, 1.5)
TEACHING = Teaching(PROMPTS, SPLIT, epochs=2, pictures=4, lr=3e-3)
W = {"cluster-0": 1.0, "cluster-1": 3.0}


@pytest.fixture
def clusters(base: Base) -> dict[str, LoRA]:
    return {f"cluster-{i}": random_lora(base, 40 + i, (2, 3)) for i in range(2)}


@pytest.fixture
def lora_neu(clusters: dict[str, LoRA]) -> LoRA:
    return stack_loras(list(clusters.values()), [0.5, 0.5])


def test_the_kl_of_channels_with_known_moments() -> None:
    x = torch.tensor([[[[-1.0, 1.0]], [[-2.0, 2.0]]], [[[1.0, -1.0]], [[4.0, 0.0]]]])  # means 0, 1; variances 1, 5
    assert float(kl_to_normal(x)) == pytest.approx(0.5 * (0 + (1 + 5 - 1 - math.log(5)) / 2))
    assert float(kl_to_normal(x[:, :1])) == pytest.approx(0)


def test_losses_are_those_of_the_definition(base: Base, clusters: dict[str, LoRA], lora_neu: LoRA) -> None:
    """Σ_k w_k ‖e - e_k‖² term by term, on the latents of a run that is written out here."""
    found = neutralise(base, lora_neu, clusters, W, replace(TEACHING, epochs=0), print)
    assert found.before == found.after
    prompts, seeds = [PROMPTS[0], PROMPTS[4]] * 2, [0, 1, 2, 3]
    visited = [denoise.initial_latents(base, seeds)]
    outputs = {"neutral": [], **{name: [] for name in clusters}}
    for name, lora in {"neutral": lora_neu, **clusters}.items():
        with torch.no_grad(), adapters.adapted(base, lora):
            batch = denoise.encode_batch(base, prompts, seeds)
            if name == "neutral":
                denoise.early(base, batch, SPLIT, on_step=lambda _, x: visited.append(x))
            for x_t, t in zip(visited[:3], (901, 801, 701), strict=True):
                guided = base.unet(x_t, t, batch.text).sample * 1.5 - base.unet(x_t, t, batch.empty).sample * 0.5
                outputs[name].append(guided)
    e = {name: torch.stack(found) for name, found in outputs.items()}
    mix = [float((e["neutral"] - e[f"cluster-{k}"]).square().mean()) for k in range(2)]
    assert found.before.mix == pytest.approx(0.25 * mix[0] + 0.75 * mix[1], rel=1e-4)
    assert found.before.spread == pytest.approx(
        0.25 * 0.75 * float((e["cluster-0"] - e["cluster-1"]).square().mean()), rel=1e-3
    )
    assert found.before.neu == pytest.approx(float(kl_to_normal(visited[3])), rel=1e-4)
    total = found.before.total(replace(TEACHING, lambda_neu=0.5, lambda_mix=2.0))
    assert total == pytest.approx(0.5 * found.before.neu + 2 * found.before.mix)


def test_descending_lowers_what_can_be_lowered_and_leaves_the_base(
    base: Base, clusters: dict[str, LoRA], lora_neu: LoRA
) -> None:
    said: list[str] = []
    mix_alone = replace(TEACHING, lambda_neu=0.0)  # the x_mid of an untrained base is far from N(0, I)
    found = neutralise(base, lora_neu, clusters, W, mix_alone, said.append)
    assert found.after.spread == found.before.spread
    assert found.after.mix - found.after.spread < 0.9 * (found.before.mix - found.before.spread)
    assert [line.split(":")[0] for line in said] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert {k: (f.shape, f.rank) for k, f in found.lora.items()} == {k: (f.shape, f.rank) for k, f in lora_neu.items()}
    assert weights_sha(base.unet, base.text_encoder, base.vae) == base.sha
    again = neutralise(base, lora_neu, clusters, W, mix_alone, said.append)
    assert all((again.lora[k].B == f.B).all() and (again.lora[k].A == f.A).all() for k, f in found.lora.items())


def test_kl_alone_does_not_care_for_the_clusters(base: Base, clusters: dict[str, LoRA], lora_neu: LoRA) -> None:
    """Why λ_mix > 0 by default: latents near N(0, I) need not be ones that any cluster can go on from."""
    alone = replace(TEACHING, lambda_neu=1.0, lambda_mix=0.0, epochs=4)
    found = neutralise(base, lora_neu, clusters, W, alone, print)
    assert found.after.neu < found.before.neu and found.after.mix > found.before.mix


def test_with_one_cluster_there_is_nothing_between(base: Base, clusters: dict[str, LoRA]) -> None:
    one = {"cluster-0": clusters["cluster-0"]}
    found = neutralise(base, one["cluster-0"], one, {"cluster-0": 0.3}, replace(TEACHING, epochs=0), print)
    assert found.before.mix == found.before.spread == pytest.approx(0, abs=1e-9)


def test_prompts_are_taught_or_judged_by_and_seeds_are_never_reused() -> None:
    assert TEACHING.held_out == ("a cat", "a cup") and TEACHING.taught == ("a dog", "a car", "a tree")
    seeds = [s for run in (0, 1) for epoch in range(3) for s in neutralize._seeds(replace(TEACHING, seed=run), epoch)]
    assert len(set(seeds)) == len(seeds) == 24


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": ("a cat", "a cat")}, "two different prompts or more, got 1"),
        ({"split": denoise.Split(10, 0, 1.5)}, "at least one early step; raise --split"),
        ({"lambda_mix": -1.0}, "must not be negative, nor both 0"),
        ({"lambda_neu": 0.0, "lambda_mix": 0.0}, "must not be negative, nor both 0"),
    ],
)
def test_teaching_that_makes_no_sense_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TEACHING, **changes)


def test_what_cannot_be_neutralised_is_refused(base: Base, clusters: dict[str, LoRA], lora_neu: LoRA) -> None:
    with pytest.raises(ValueError, match="needs cluster adapters with a weight each"):
        neutralise(base, lora_neu, clusters, {"cluster-0": 1.0}, TEACHING, print)
    huge = {layer: type(f)(f.B * np.float32(1e30), f.A * np.float32(1e30)) for layer, f in lora_neu.items()}
    with pytest.raises(ValueError, match=r"L_g became (nan|inf); lower --lr \(0\.003\)"):
        neutralise(base, huge, clusters, W, TEACHING, print)
    assert weights_sha(base.unet, base.text_encoder, base.vae) == tiny_base().sha
