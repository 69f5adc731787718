"""Put trained parts together as a diffusers folder and an open_clip folder, float16, in the weights package."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from train_denoiser import MAX_TOKENS, build_scheduler
from transformers import CLIPTextModel

from fedsd.base.tokenizer import build_tokenizer


def main() -> None:
    """Write `--out/base` and `--out/clip`."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--vae", type=Path, required=True)
    args.add_argument("--denoiser", type=Path, required=True, help="folder with unet/ and text_encoder/")
    args.add_argument("--clip", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("fedsd_tiny"))
    opts = args.parse_args()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(opts.vae),
        text_encoder=CLIPTextModel.from_pretrained(opts.denoiser / "text_encoder"),
        tokenizer=build_tokenizer(MAX_TOKENS),
        unet=UNet2DConditionModel.from_pretrained(opts.denoiser / "unet"),
        scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(dtype=torch.float16).save_pretrained(opts.out / "base")
    for file in (opts.out / "base").glob("*/config.json"):  # without the folder that each part came from
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if opts.clip.resolve() != (opts.out / "clip").resolve():
        shutil.copytree(opts.clip, opts.out / "clip", dirs_exist_ok=True)
    size = sum(p.stat().st_size for p in opts.out.rglob("*.safetensors"))
    print(f"{size / 1e6:.1f} MB of weights in {opts.out}")


if __name__ == "__main__":
    main()
