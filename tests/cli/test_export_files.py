"""`fedsd export`: stock diffusers opens what is written for each program, with the same output."""

import copy
import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from models import random_lora, tiny_base, unet_output
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.cli.comfy import comfy_sampler
from fedsd.cli.main import app
from fedsd.hybrid.neutral import save_neutralised
from fedsd.privacy.words import register
from fedsd.store import PrivateFolder, RunFolder

CASES = {  # program -> an adapter's file below the export
    "diffusers": "cluster-1/pytorch_lora_weights.safetensors",
    "comfyui": "models/loras/otter-cluster-1.safetensors",
    "a1111": "models/Lora/otter-cluster-1.safetensors",
}


def export(run: RunFolder, out: Path, to: str, *options: str, code: int = 0) -> list[Path]:
    arguments = ["export", str(run.path), "--to", to, "--out", str(out), "--steps", "2", "--json", *options]
    arguments += [] if "--private-dir" in options else ["--private-dir", str(out)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return [Path(file) for file in json.loads(done.stdout)["files"]]


def stock() -> Base:
    base = tiny_base()
    return replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))


def outputs(base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return unet_output(base), denoise.encode_prompts(base, ["a cat", "two dogs"])


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="np") as readable:
        return dict(readable.metadata())


@pytest.mark.parametrize("to", CASES)
def test_stock_diffusers_opens_each_export_with_the_same_output(small_run: RunFolder, tmp_path: Path, to: str) -> None:
    files = export(small_run, tmp_path, to, "--trigger", "ink style", "--adapter", "cluster-1")
    file = tmp_path / CASES[to]
    assert file in files and all(one.exists() for one in files)
    with adapters.adapted(tiny_base(), random_lora(tiny_base(), 61, (1, 4, 2, 7), convolutions=True)):
        ours = outputs(tiny_base())
    theirs = stock()
    theirs.pipeline().load_lora_weights(file.parent, weight_name=file.name)
    for opened, expected in zip(outputs(theirs), ours, strict=True):
        torch.testing.assert_close(opened, expected, rtol=0, atol=1e-5)
    said = metadata(file)
    assert said["modelspec.trigger_phrase"] == "ink style" and "'ink style'" in said["modelspec.usage_hint"]
    assert json.loads(said["ss_tag_frequency"]) == {"otter": {"ink style": 40}}
    assert (said["fedsd.round"], said["fedsd.beta"], said["modelspec.resolution"]) == ("1", '{"1": 0.75}', "16x16")
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_every_adapter_has_a_cover_and_the_card_shows_it(small_run: RunFolder, tmp_path: Path) -> None:
    files = [file.relative_to(tmp_path).as_posix() for file in export(small_run, tmp_path, "a1111")]
    names = ("cluster-0", "cluster-1", "mix", "neutral")
    assert files == [f"models/Lora/otter-{n}.{end}" for n in names for end in ("safetensors", "png", "json")] + [
        "README.md"
    ]
    with Image.open(tmp_path / "models/Lora/otter-mix.png") as cover:
        assert cover.size == (16, 16)
        assert cover.text["parameters"].startswith("a picture of a house <lora:otter-mix:1>\nSteps: 2, Sampler: DDIM")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nbase_model: ") and "<lora:otter-cluster-0:1>" in card
    assert all(f"![{n}](models/Lora/otter-{n}.png)" in card for n in names)
    assert json.loads((tmp_path / "models/Lora/otter-mix.json").read_text())["sd version"] == "SD1"


def test_the_neutralised_adapter_is_exported_where_there_is_one(small_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "otter")
    run.write("run.toml", (small_run.path / "run.toml").read_text())
    run.save_round(*small_run.load_round(1))
    save_neutralised(run.path, 1, random_lora(tiny_base(), 99), {})
    export(run, tmp_path / "out", "comfyui", "--adapter", "neutral")
    tensors = load_file(tmp_path / "out/models/loras/otter-neutral.safetensors")
    layer, factor = next(iter(random_lora(tiny_base(), 99).items()))
    name = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
    np.testing.assert_array_equal(tensors[f"{name}.lora_up.weight"].numpy(), factor.B)


@pytest.mark.parametrize(("to", "folder"), [("diffusers", ""), ("comfyui", "models/"), ("a1111", "")])
def test_private_tokens_become_embeddings_that_diffusers_opens(
    small_run: RunFolder, tmp_path: Path, to: str, folder: str
) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    PrivateFolder(tmp_path / "nodes", "anna").save("learned_embeds", {"<user-s>": vectors})
    options = ("--client", "anna", "--private-dir", str(tmp_path / "nodes"), "--adapter", "mix")
    export(small_run, tmp_path / "out", to, *options)
    file = tmp_path / "out" / f"{folder}embeddings/user-s.safetensors"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "give them to nobody" in (tmp_path / "out" / "README.md").read_text()
    base = stock()
    pipe = replace(base, tokenizer=copy.deepcopy(base.tokenizer)).pipeline()
    pipe.load_textual_inversion(file)
    ids = pipe.tokenizer.convert_tokens_to_ids(["<user-s>", "<user-s>_1"])
    found = pipe.text_encoder.get_input_embeddings().weight[ids].detach().numpy()
    np.testing.assert_array_equal(found, vectors)


def test_x_mid_goes_on_in_comfyui_as_it_would_here(small_run: RunFolder, tmp_path: Path) -> None:
    """LoadLatent, process_latent_in and Euler from `start_at_step`, which is what ComfyUI's `ddim` is."""
    options = (
        "--adapter",
        "mix",
        "--latent",
        "a cat",
        "--steps",
        "20",
        "--split",
        "0.3",
        "--seed",
        "5",
        "--guidance",
        "3",
    )
    assert export(small_run, tmp_path, "comfyui", *options)[-2] == tmp_path / "input" / "otter-x_mid.latent"
    file, base = tmp_path / "input" / "otter-x_mid.latent", tiny_base()
    tensors, set_to = load_file(file), json.loads(metadata(file)["fedsd.ksampler"])
    assert "latent_format_version_0" in tensors and (set_to["start_at_step"], set_to["cfg"]) == (6, 3.0)
    x = tensors["latent_tensor"] * base.vae.config.scaling_factor
    sigmas = ((1 - base.scheduler.alphas_cumprod) / base.scheduler.alphas_cumprod).sqrt()
    wanted = sigmas[range(1, 1000, 1000 // set_to["steps"])].flip(0)  # ddim_uniform
    euler = EulerDiscreteScheduler.from_config(base.scheduler.config, timestep_spacing="leading", steps_offset=1)
    euler.set_timesteps(20)
    torch.testing.assert_close(euler.sigmas[:20], wanted, rtol=1e-4, atol=0)
    split = denoise.Split(20, 6, 3.0)
    with torch.no_grad():
        batch = denoise.encode_batch(base, ["a cat"], [5])
        with adapters.adapted(base, small_run.load_adapter(1, "neutral")):
            early = denoise.encode_batch(base, ["a cat"], [5])
            x_mid = denoise.early(base, early, split, scheduler=comfy_sampler(base, 20))
        here = denoise.late(base, x_mid, batch, split, scheduler=comfy_sampler(base, 20))
        there = denoise.late(base, x, batch, split, scheduler=euler)
    assert (here - there).norm() / here.norm() < 0.02  # DDIM ends at the first timestep's noise, Euler at none


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "invoke"), r"--to must be one of diffusers, comfyui, a1111; got 'invoke'"),
        (("--to", "a1111", "--latent", "a cat"), "a1111 opens no latents; give --latent with --to comfyui"),
        (("--to", "comfyui", "--adapter", "mixx"), r"has no adapter 'mixx'; choose from cluster-0, "),
        (("--to", "comfyui", "--client", "bert"), r"holds no learned_embeds\.safetensors, so bert has no token"),
        (("--to", "comfyui", "--trigger", "Sketch style"), "--trigger holds the private word 'sketch'"),
        (("--to", "comfyui", "--adapter", "mix", "--latent", "a cat", "--steps", "30"), "30 does not divide 1000"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    small_run: RunFolder, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    register(PrivateFolder(tmp_path, "anna"), ["sketch"])
    arguments = [
        "export",
        str(small_run.path),
        "--private-dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    with pytest.raises(ValueError, match=said):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
