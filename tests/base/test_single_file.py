import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from ldm import state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base import load as loading
from fedsd.base.denoise import decode_latents, encode_prompts, generate
from fedsd.base.single_file import infer_configs, load_single_file
from fedsd.base.tokenizer import build_tokenizer

SD15_UNET = {
    "in_channels": 4, "out_channels": 4, "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD15_VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "scaling_factor": 0.18215, "norm_num_groups": 32, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD15_TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768, "hidden_act": "quick_gelu",
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
}  # fmt: skip


def pipeline(unet: dict, vae: dict, text: dict) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**unet), vae=AutoencoderKL(**vae), text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=build_tokenizer(77), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> StableDiffusionPipeline:
    """Everything as in SD 1.x but narrower and shallower: three levels of 32 and 64 channels, attention at two."""
    torch.manual_seed(0)
    unet = SD15_UNET | {
        "block_out_channels": [32, 64, 64], "layers_per_block": 1, "cross_attention_dim": 64,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
    }  # fmt: skip
    vae = SD15_VAE | {
        "block_out_channels": [32, 64], "layers_per_block": 1, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }  # fmt: skip
    text = SD15_TEXT | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    return pipeline(unet, vae, text)


@pytest.fixture(scope="module")
def tensors(small: StableDiffusionPipeline) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in state_dict(small).items()}


@pytest.fixture(scope="module")
def checkpoint(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(tensors, path)
    return path


def test_every_tensor_and_output_comes_back(checkpoint: Path, small: StableDiffusionPipeline) -> None:
    loaded = load_single_file(checkpoint, torch.float32)
    for name in ("unet", "vae", "text_encoder"):
        wanted = getattr(small, name).state_dict()
        found = getattr(loaded, name).state_dict()
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert torch.equal(found[key], wanted[key]), f"{name}.{key}"
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        ids = small.tokenizer(["a cat", "a dog"], padding="max_length", return_tensors="pt").input_ids
        states = small.text_encoder(ids).last_hidden_state
        torch.testing.assert_close(loaded.text_encoder(ids).last_hidden_state, states, rtol=0, atol=1e-5)
        torch.testing.assert_close(loaded.unet(x, t, states).sample, small.unet(x, t, states).sample, rtol=0, atol=1e-5)
        torch.testing.assert_close(loaded.vae.decode(x).sample, small.vae.decode(x).sample, rtol=0, atol=1e-5)
    assert torch.equal(loaded.scheduler.alphas_cumprod, small.scheduler.alphas_cumprod)
    assert loaded.scheduler.config.prediction_type == "epsilon"


def test_load_makes_a_base_of_it_that_draws_the_same_picture(checkpoint: Path, small: StableDiffusionPipeline) -> None:
    base = loading.load(str(checkpoint))
    assert base.sha == loading.weights_sha(small.unet, small.text_encoder, small.vae)
    assert base.size == 128  # 64 latents, as SD 1.x has, times this autoencoder's 2
    picture = generate(base, ["a cat"], [1], steps=2, guidance=7.5, size=16)
    other = loading.Base(
        small.unet, small.text_encoder, small.vae, small.tokenizer, small.scheduler, 128, "", torch.device("cpu")
    )
    assert (picture == generate(other, ["a cat"], [1], steps=2, guidance=7.5, size=16)).all()


def test_half_precision_is_kept(checkpoint: Path) -> None:
    base = loading.load(str(checkpoint), "bfloat16")
    assert {p.dtype for m in (base.unet, base.vae, base.text_encoder) for p in m.parameters()} == {torch.bfloat16}
    states = encode_prompts(base, ["a cat"])
    output = base.unet(torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), torch.tensor([5]), states).sample
    assert output.isfinite().all() and decode_latents(base, output.detach()).shape == (1, 16, 16, 3)


def test_sizes_of_sd_15_are_read_from_its_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            key: tuple(value.shape) for key, value in state_dict(pipeline(SD15_UNET, SD15_VAE, SD15_TEXT)).items()
        }
    configs = infer_configs(shapes)
    names = {"_class_name": "UNet2DConditionModel"}, {"_class_name": "AutoencoderKL"}, {"model_type": "clip_text_model"}
    assert configs["unet/config"] == SD15_UNET | names[0]
    assert configs["vae/config"] == SD15_VAE | names[1]
    assert configs["text_encoder/config"] == SD15_TEXT | names[2]
    assert shapes["model.diffusion_model.input_blocks.8.1.proj_in.weight"] == (
        1280,
        1280,
        1,
        1,
    )  # a name of the real file
    assert shapes["model.diffusion_model.output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)


def test_ckpt_of_tensors_alone_is_opened(
    tensors: dict[str, Tensor], tmp_path: Path, small: StableDiffusionPipeline
) -> None:
    torch.save({"state_dict": tensors, "global_step": 7}, tmp_path / "model.ckpt")
    loaded = load_single_file(tmp_path / "model.ckpt", torch.float32)
    assert loading.weights_sha(loaded.unet) == loading.weights_sha(small.unet)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("trap-has-run"),))


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_pickle_is_refused_by_its_first_bytes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(
        ValueError, match=f"{name} is a pickle, which can run code when it is opened; save it as .safet"
    ):
        load_single_file(tmp_path / name, torch.float32)
    assert not Path("trap-has-run").exists()


def test_torch_archive_with_more_than_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callbacks": Trap()}, "model.ckpt")
    with pytest.raises(
        ValueError, match=r"model\.ckpt holds more than tensors, or is damaged.* save it as \.safetensors"
    ):
        load_single_file(Path("model.ckpt"), torch.float32)
    Path("model.ckpt").rename("model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pickle"):
        load_single_file(Path("model.safetensors"), torch.float32)
    assert not Path("trap-has-run").exists()


def test_safetensors_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"model.weight": torch.zeros(2)}, path, {"padding": "x" * 29})
    assert path.read_bytes()[:1] == b"\x80"
    with pytest.raises(ValueError, match=r"has no tensors named model\.diffusion_model"):
        load_single_file(path, torch.float32)


def test_what_is_no_checkpoint_is_named(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"page\.safetensors is no .*: it begins with b'<!DOCTYPE'; download it again"):
        load_single_file(tmp_path / "page.safetensors", torch.float32)
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors .*file not fully covered"):
        load_single_file(tmp_path / "cut.safetensors", torch.float32)
    torch.save(torch.zeros(2), tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"one\.ckpt has no tensors named model\.diffusion_model\.\*"):
        load_single_file(tmp_path / "one.ckpt", torch.float32)


@pytest.mark.parametrize(
    ("key", "whose"),
    [
        ("conditioner.embedders.0.transformer.text_model.x", "is Stable Diffusion XL"),
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "is Stable Diffusion 2.x"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "is Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "is FLUX"),
        ("lora_unet_down_blocks_0_attentions_0.lora_down.weight", "is a LoRA adapter, not a base"),
        ("down_blocks.0.resnets.0.conv1.weight", "is one component in diffusers' format; name the pipeline's folder"),
        ("model.weight", r"has no tensors named model\.diffusion_model\.\*, first_stage_model\.\*, cond_stage_model\."),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, key: str, whose: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=f"other.safetensors {whose}.*; base.name takes a Stable Diffusion 1.x checkpoint"
    ):
        load_single_file(tmp_path / "other.safetensors", torch.float32)


UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {f"{UNET}input_blocks.2.0.op.weight": None, f"{UNET}input_blocks.2.0.in_layers.2.weight": (32, 32, 3, 3)},
            r"another structure \(channels \[\[32, 32, 64\], \[64\]\], attention \[\[1, 0, 1\], \[0\]\]\)",
        ),
        ({f"{UNET}middle_block.1.proj_in.weight": (64, 64)}, "another structure"),  # SD 2's linear projection
        ({f"{UNET}label_emb.0.0.weight": (64, 64)}, "another structure"),
        (
            {f"{UNET}input_blocks.1.0.in_layers.2.weight": (48, 32, 3, 3)},
            "48 channels in its U-Net; SD 1.x has multiples of",
        ),
        (
            {f"{TEXT}embeddings.token_embedding.weight": (49410, 64)},
            "a text encoder of 49410 words and width 64; CLIP's",
        ),
        (
            {f"{TEXT}embeddings.token_embedding.weight": (49408, 80)},
            "a text encoder of 49408 words and width 80; CLIP's",
        ),
        (
            {f"{TEXT}embeddings.position_embedding.weight": None},
            "lacks the tensor embeddings.position_embedding.weight",
        ),
        ({"first_stage_model.decoder.conv_in.weight": None}, "lacks the tensor decoder.conv_in.weight"),
    ],
)
def test_other_structures_are_refused(tensors: dict[str, Tensor], changes: dict, said: str) -> None:
    shapes = {key: tuple(value.shape) for key, value in tensors.items()} | changes
    with pytest.raises(ValueError, match=said):
        infer_configs({key: shape for key, shape in shapes.items() if shape is not None})


def test_missing_and_surplus_tensors_are_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({k: v for k, v in tensors.items() if k != f"{TEXT}final_layer_norm.bias"}, path)
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors, such as text_encoder\.(text_model\.)?final_layer_norm\.bias"
    ):
        load_single_file(path, torch.float32)
    save_file(tensors | {f"{UNET}time_embed.4.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"has 1 U-Net tensors that SD 1\.x does not have"):
        load_single_file(path, torch.float32)
    save_file(tensors | {f"{UNET}time_embed.0.weight": torch.zeros(99, 32)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors .*time_embedding.linear_1.weight.*\[99, 32\]"):
        load_single_file(path, torch.float32)


def test_inpainting_model_is_refused_by_its_channels(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors | {f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, tmp_path / "inpaint.safetensors")
    with pytest.raises(ValueError, match=r"inpaint\.safetensors' has 9 latent channels"):
        loading.load(str(tmp_path / "inpaint.safetensors"))


def test_configs_are_plain_json(tensors: dict[str, Tensor]) -> None:
    configs = infer_configs({key: tuple(value.shape) for key, value in tensors.items()})
    assert json.loads(json.dumps(configs)) == configs
