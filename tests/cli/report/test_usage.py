from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fedsd.base.load import tiny_folder
from fedsd.cli.report.usage import diffusers_lines
from fedsd.lowrank import Factor
from fedsd.store import export_diffusers


def small_pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder() / "base" / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length)
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    return StableDiffusionPipeline(
        vae, text, tokenizer, unet, DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def test_the_lines_draw_a_picture_with_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pipeline().save_pretrained(tmp_path / "base")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    lora = {layer: Factor(torch.randn(16, 2).numpy(), torch.randn(2, 16).numpy())}
    export_diffusers(lora, tmp_path / "run" / "loras" / "cluster-0")
    monkeypatch.chdir(tmp_path / "run")
    scope: dict[str, object] = {}
    exec(diffusers_lines(str(tmp_path / "base"), "cluster-0", "a cat"), scope)
    assert Image.open("picture.png").size == (8, 8)
    assert list(scope["pipe"].get_active_adapters()) == ["default_0"]  # type: ignore[attr-defined]


def test_the_base_says_how_it_is_loaded() -> None:
    embedded = diffusers_lines("tiny", "mix", "a cat")
    assert "fedsd.base.load import load" in embedded and "DDPMScheduler.from_config" in embedded
    assert "guidance_scale=2.5" in embedded and "guidance_scale=7.5" in diffusers_lines("some/sd", "mix", "a cat")
    assert "from_single_file('/models/sd15.safetensors')" in diffusers_lines("/models/sd15.safetensors", "mix", "a cat")
    assert "from_pretrained('some/sd')" in diffusers_lines("some/sd", "mix", "a cat")


def test_a_prompt_with_quotes_is_still_python() -> None:
    compile(diffusers_lines("a'b\"c", "mix", 'the cat\'s "house"'), "lines", "exec")
