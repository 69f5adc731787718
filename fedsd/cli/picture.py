"""`fedsd generate`: a prompt to a PNG, drawn here or begun on an Inference Edge Server."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from fedsd.base import denoise, load
from fedsd.base.load import Base
from fedsd.base.schedulers import WITHOUT_MEMORY, most_steps, scheduler_named
from fedsd.cli.grids import parameters_text
from fedsd.hybrid.client import Drawing, Drawn, Remote, draw
from fedsd.store import write_file

SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler", "lcm": "LCM"}  # as A1111 names them


@dataclass(frozen=True)
class Picture:
    """What to draw: `count` pictures side by side, seeds `seed`, `seed + 1`, ...; local_scale: of the adapter.

    scheduler: a sampler of `WITHOUT_MEMORY`, here and with a server alike.
    """

    prompt: str
    lora: Path | None
    base: str
    count: int
    steps: int
    guidance: float
    seed: int
    local_scale: float = 1.0
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        """Raise ValueError for samplers that cannot be."""
        if self.scheduler not in WITHOUT_MEMORY:
            raise ValueError(f"--scheduler must be one of {', '.join(WITHOUT_MEMORY)}; got {self.scheduler!r}")


@dataclass(frozen=True)
class Shared:
    """What an Inference Edge Server does of it: the first `split` of the steps, from the prompt `generic`."""

    remote: Remote
    split: float
    generic: str
    mix_loras: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for shares that cannot be."""
        if not 0 < self.split < 1:
            raise ValueError(f"--split is the server's share of the steps, between 0 and 1; got {self.split}")


def draw_pictures(picture: Picture, out: Path) -> Path:
    """Draw on this machine alone, and write `out`; see `write_pictures`.

    Raises ValueError when the sampler cannot be set to so many steps, or there is no adapter where one should be.
    """
    model = _model(picture)
    model = replace(model, scheduler=scheduler_named(model, picture.scheduler))
    if picture.steps > (most := most_steps(model.scheduler)):
        raise ValueError(
            f"--steps is {picture.steps}; {picture.scheduler} on this base takes at most {most}; take fewer or another "
            "--scheduler"
        )
    pictures = denoise.generate(
        model, [picture.prompt] * picture.count, _seeds(picture), steps=picture.steps, guidance=picture.guidance
    )
    return write_pictures(out, pictures, picture, {"Sampler": SAMPLERS[picture.scheduler]})


def draw_with_server(picture: Picture, shared: Shared, out: Path) -> tuple[Path, list[Drawn]]:
    """Draw with a server, write `out`, and return it with an account of each picture."""
    model = _model(picture)
    split = denoise.Split(picture.steps, max(1, round(shared.split * picture.steps)), picture.guidance)
    drawing = Drawing(
        picture.prompt, shared.generic, picture.seed, split, picture.scheduler, mix_loras=shared.mix_loras
    )  # fmt: skip
    drawn = [draw(model, replace(drawing, seed=seed), shared.remote) for seed in _seeds(picture)]
    pictures = np.concatenate([denoise.decode_latents(model, one.latents) for one in drawn])
    return write_pictures(out, pictures, picture, about_server(drawing, drawn)), drawn


def about_server(drawing: Drawing, drawn: list[Drawn]) -> dict[str, object]:
    """Return the settings of a PNG that tell of the server; it counts only where it began every picture."""
    server_steps = drawing.split.server_steps if all(one.told for one in drawn) else 0
    return {"Sampler": SAMPLERS[drawing.scheduler], "Server steps": server_steps, "Mix": drawing.mix_loras}


def account(drawn: list[Drawn]) -> dict[str, Any]:
    """Return who drew, and what it cost, as JSON values."""
    return {
        "drawn": [
            {
                "by": "server and device" if one.told else "device", "why": one.why, "bytes_sent": one.sent,
                "bytes_received": one.received, "seconds_waited": one.waited, "seconds_computed": one.computed,
                "server": one.told.model_dump() if one.told else None,
            }
            for one in drawn
        ]
    }  # fmt: skip


def account_lines(drawn: list[Drawn]) -> list[str]:
    """Return a line per picture: who drew, or why the server did not."""
    return [
        f"server {one.told.server_steps} of {one.told.steps} steps ({one.told.cache}, {one.waited:.2f} s, "
        f"{one.received} bytes), the rest here in {one.computed:.2f} s"
        if one.told
        else f"all steps drawn on this device: {one.why}"
        for one in drawn
    ]


def write_pictures(out: Path, pictures: np.ndarray, picture: Picture, more: Mapping[str, object]) -> Path:
    """Write pictures (N, H, W, 3) side by side as a PNG whose text `parameters` holds the settings, as A1111's do."""
    about = {"Steps": picture.steps, **more, "CFG scale": picture.guidance, "Seed": picture.seed}
    about |= {"Model": picture.base, "Lora": picture.lora or "none", "Lora scale": picture.local_scale}
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", parameters_text(picture.prompt, about))
    packed = io.BytesIO()
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(packed, "PNG", pnginfo=text)
    write_file(out, packed.getvalue())
    return out


def _seeds(picture: Picture) -> list[int]:
    return [picture.seed + i for i in range(picture.count)]


def _model(picture: Picture) -> Base:
    """Return the base with the adapter, read by diffusers' own `load_lora_weights`; ValueError when there is none."""
    model = load.load(picture.base)
    if picture.lora is not None:
        if not (picture.lora / "pytorch_lora_weights.safetensors").exists():
            raise ValueError(
                f"{picture.lora} holds no pytorch_lora_weights.safetensors; give a folder under <run>/loras. A run "
                "that shares other than LoRA factors has none: give a model of fedsd export --to diffusers as --base"
            )
        pipe = model.pipeline()
        pipe.load_lora_weights(picture.lora, adapter_name="personal")
        pipe.set_adapters("personal", picture.local_scale)
    return model
