"""`fedsd generate`: a prompt to a PNG."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from fedsd.base import denoise, load
from fedsd.cli.grids import parameters_text
from fedsd.store import write_file


def draw_pictures(  # noqa: PLR0913  the settings of a picture
    prompt: str, lora: Path | None, base: str, out: Path, *, count: int, steps: int, guidance: float, seed: int
) -> Path:
    """Write `count` pictures of `prompt` side by side to `out`, seeds `seed`, `seed + 1`, ...; returns `out`.

    lora: a diffusers adapter folder, read by diffusers' own `load_lora_weights`. The settings go into the PNG's text
    chunk `parameters`, as A1111 writes them. Raises ValueError when there is no adapter in `lora`.
    """
    model = load.load(base)
    if lora is not None:
        if not (lora / "pytorch_lora_weights.safetensors").exists():
            raise ValueError(f"{lora} holds no pytorch_lora_weights.safetensors; give a folder under <run>/loras")
        model.pipeline().load_lora_weights(lora)
    seeds = [seed + i for i in range(count)]
    pictures = denoise.generate(model, [prompt] * count, seeds, steps=steps, guidance=guidance)
    about = {
        "Steps": steps,
        "Sampler": "DDIM",
        "CFG scale": guidance,
        "Seed": seed,
        "Model": base,
        "Lora": lora or "none",
    }
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", parameters_text(prompt, about))
    packed = io.BytesIO()
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(packed, "PNG", pnginfo=text)
    write_file(out, packed.getvalue())
    return out
