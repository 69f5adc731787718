"""Train the embedded open_clip model: a small ResNet image tower and text tower, for style embeddings and CLIP scores.

Contrastive loss of Radford et al. (2021). A caption says what is shown and how it is drawn, so the image tower must
keep both. Each picture may be turned into one of several further looks (grey, line, inverted, blurred, blocky, few
colours, dark, noisy) that its caption names: styles that the tower never saw then still land apart.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from pictures import TEMPLATES, Picture, draw_all, read_emoji, to_pixels
from safetensors.torch import save_file
from torch import Tensor
from train_autoencoder import ALL_GROUPS

from fedsd.data import drawn

CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}
STYLE_WORDS = {
    "noto": "noto emoji", "fluent_3d": "3d emoji", "flat": "flat", "shaded": "shaded", "soft": "soft",
    "sketch": "pencil sketch", "cartoon": "cartoon", "painted": "painted", "pixel": "pixel art",
}  # fmt: skip
LOOKS = ("", "grey", "line drawing", "inverted", "blurred", "blocky", "posterised", "dark", "noisy")


def relook(x: Tensor, kind: int) -> Tensor:
    """Turn pixels (N, 3, 64, 64) in [-1, 1] into look `LOOKS[kind]`."""
    match LOOKS[kind]:
        case "grey":
            return x.mean(1, keepdim=True).expand_as(x)
        case "line drawing":
            grey = x.mean(1, keepdim=True)
            edge = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
            return (1 - 2 * edge).clamp(-1, 1).expand_as(x)
        case "inverted":
            return -x
        case "blurred":
            return F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
        case "blocky":
            return F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="nearest")
        case "posterised":
            return torch.round((x + 1) * 1.5) / 1.5 - 1
        case "dark":
            return 0.5 * (x + 1) - 1
        case "noisy":
            return (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)
    return x


def geometric(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip, scale by 0.85 to 1.15 and shift by at most 6 pixels, white outside."""
    if rng.random() < 0.5:
        x = x.flip(3)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(rng.uniform(0.85, 1.15, len(x))).float()
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-0.19, 0.19, (len(x), 2))).float()
    return F.grid_sample(x - 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) + 1


def caption(picture: Picture, look: str, rng: np.random.Generator) -> str:
    """What it shows, how it is drawn, and its further look."""
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(picture.name)
    if rng.random() < 0.7:
        text += f", {STYLE_WORDS[picture.style]} style"
    return f"{text}, {look}" if look else text


def batch(pictures: list[Picture], data: Tensor, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return pixels (size, 3, 64, 64) and tokens (size, 32)."""
    index = rng.permutation(len(pictures))[:size]
    kinds = np.where(rng.random(size) < 0.5, 0, rng.integers(0, len(LOOKS), size))
    x = geometric(data[index], rng)
    for kind in np.unique(kinds):
        x[kinds == kind] = relook(x[kinds == kind], int(kind))
    texts = [caption(pictures[i], LOOKS[k], rng) for i, k in zip(index, kinds, strict=True)]
    return x, open_clip.get_tokenizer("RN50", context_length=CONFIG["text_cfg"]["context_length"])(texts)


def main() -> None:
    """Train for `--minutes` and write `open_clip_config.json` and `open_clip_model.safetensors`."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--minutes", type=float, default=10)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--threads", type=int, default=2)
    opts = args.parse_args()
    torch.set_num_threads(opts.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pictures = 2 * read_emoji(opts.emoji, groups=ALL_GROUPS) + draw_all(drawn.LOOKS + drawn.STYLES, variations=2)
    data = to_pixels(pictures)
    model = open_clip.model.CLIP(**CONFIG)
    model.logit_scale.data.fill_(np.log(1 / 0.07))
    optimiser = torch.optim.AdamW(model.parameters(), lr=opts.lr, weight_decay=0.05)
    start, step = time.time(), 0
    while (progress := (time.time() - start) / 60 / opts.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = opts.lr * min(1, (step + 1) / 50) * max(0.02, 1 - progress)
        x, tokens = batch(pictures, data, opts.batch, rng)
        image, text, scale = model(x, tokens)
        logits = scale * image @ text.T
        target = torch.arange(len(x))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.logit_scale.data.clamp_(0, np.log(100))
        step += 1
        if step % 50 == 0:
            right = (logits.argmax(1) == target).float().mean()
            print(f"step {step}  loss {loss:.3f}  right {right:.2f}  {time.time() - start:.0f} s", flush=True)
    opts.out.mkdir(parents=True, exist_ok=True)
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.eval().state_dict().items()}
    save_file(half, opts.out / "open_clip_model.safetensors")
    (opts.out / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": 3 * [0.5], "std": 3 * [0.5]}}, indent=1)
    )


if __name__ == "__main__":
    main()
