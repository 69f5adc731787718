import copy
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from diffusers import DDIMScheduler
from models import TEXT, VISION, tiny_base, tiny_clip, tiny_unet, unet_output
from safetensors.torch import save_file

from fedsd.base.denoise import generate
from fedsd.base.load import Base, load, load_clip, tiny_folder, weights_sha


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "base"
    tiny_base().pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "base"))


def test_diffusers_folder_comes_back_as_it_was(saved: Path, base: Base) -> None:
    loaded = load(str(saved))
    assert loaded.sha == base.sha and len(loaded.sha) == 64
    assert loaded.size == 16 and loaded.device.type == "cpu"
    assert torch.equal(unet_output(loaded), unet_output(base))
    assert not any(p.requires_grad for m in (loaded.unet, loaded.text_encoder, loaded.vae) for p in m.parameters())
    assert not (loaded.unet.training or loaded.text_encoder.training or loaded.vae.training)


def test_folder_with_the_small_autoencoder(tmp_path: Path) -> None:
    base = tiny_base("tiny", "v_prediction")
    base.pipeline().save_pretrained(tmp_path / "base")
    loaded = load(str(tmp_path / "base"))
    assert loaded.sha == base.sha != tiny_base().sha and loaded.size == 16
    assert loaded.scheduler.config.prediction_type == "v_prediction"


def test_one_base_is_kept_for_the_process(saved: Path) -> None:
    assert load(str(saved)) is load(str(saved))
    assert load(str(saved), "bfloat16").unet.dtype == torch.bfloat16


def test_embedded_base_draws() -> None:
    base = load("tiny")
    assert base.size == 64 and base.scheduler.config.prediction_type == "v_prediction"
    assert generate(base, ["a picture of a cat"], [0], steps=2).shape == (1, 64, 64, 3)


def test_embedded_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fedsd_tiny", None)
    with pytest.raises(ValueError, match=r'base.name = "tiny" needs the embedded weights.*`pip install fedsd`'):
        load("tiny")


def test_sha_tells_values_names_and_shapes_apart(base: Base) -> None:
    linear = torch.nn.Linear(2, 3)
    first = weights_sha(linear)
    assert weights_sha(copy.deepcopy(linear)) == first != weights_sha(linear, linear)
    with torch.no_grad():
        linear.weight[1, 1] = torch.nextafter(linear.weight[1, 1], torch.tensor(9.0))
    assert weights_sha(linear) != first
    flat = torch.nn.ParameterDict({"a": torch.zeros(6)}), torch.nn.ParameterDict({"a": torch.zeros(2, 3)})
    assert weights_sha(flat[0]) != weights_sha(flat[1]) != weights_sha(torch.nn.ParameterDict({"b": torch.zeros(2, 3)}))
    assert weights_sha(base.unet, base.text_encoder, base.vae) == base.sha != tiny_base(seed=1).sha


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r'holds no model_index\.json, so it is no diffusers pipeline; set base.name to "t'
    ):
        load(str(tmp_path))


def test_missing_components_are_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    del index["scheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"base lacks vae, scheduler, so it is no Stable Diffusion 1\.x"):
        load(str(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"base' cannot be loaded .*no file named diffusion_pytorch_model.*; set base.name"
    ):
        load(str(folder))


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_truncated_weights(folder: Path, part: str) -> None:
    (folder / part).write_bytes((folder / part).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"base' cannot be loaded \(.*; set base.name"):
        load(str(folder))


@pytest.mark.parametrize("name", ["/nowhere/model", "./model.safetensors", "model.ckpt", "~/no such folder"])
def test_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match=f"base '{name}' does not exist; set base.name to"):
        load(name)


def test_hub_name_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"base 'someone/a-model' is neither a path nor a model that could be fetched \("
    ):
        load("someone/a-model")


def saved_with(base: Base, folder: Path, **parts: object) -> str:
    replace(base, **parts).pipeline().save_pretrained(folder)
    return str(folder)


def test_other_channels_are_refused(base: Base, tmp_path: Path) -> None:
    unet = tiny_unet(in_channels=9)
    with pytest.raises(
        ValueError, match=r"has 9 latent channels and cross-attention width 16 \(text encoder 16\); SD 1\.x"
    ):
        load(saved_with(base, tmp_path, unet=unet))


def test_other_cross_attention_is_refused(base: Base, tmp_path: Path) -> None:
    unet = tiny_unet(cross_attention_dim=24)
    with pytest.raises(ValueError, match=r"has 4 latent channels and cross-attention width 24 \(text encoder 16\)"):
        load(saved_with(base, tmp_path, unet=unet))


def test_other_prediction_is_refused(base: Base, tmp_path: Path) -> None:
    scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="predicts 'sample'; training knows epsilon and v_prediction"):
        load(saved_with(base, tmp_path, scheduler=scheduler))


def test_clip_of_a_folder(tmp_path: Path) -> None:
    clip = tiny_clip()
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
        "preprocess_cfg": {"mean": clip.mean, "std": clip.std},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in clip.model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    loaded = load_clip(str(tmp_path))
    assert (loaded.size, loaded.dim, loaded.mean, loaded.std) == (32, 24, clip.mean, clip.std)
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.model.encode_image(pixels), clip.model.encode_image(pixels))
    assert isinstance(loaded.tokenizer, open_clip.SimpleTokenizer)
    assert loaded.tokenizer(["a cat"]).shape == (1, 16)


def test_embedded_clip_fits_its_configuration() -> None:
    assert (tiny_folder() / "clip" / "open_clip_model.safetensors").is_file()
    clip = load_clip()
    embedding = clip.model.encode_image(torch.zeros(1, 3, clip.size, clip.size))
    assert embedding.shape == (1, clip.dim)
