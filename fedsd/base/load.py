"""Load the frozen base: the embedded "tiny", a diffusers folder, a single-file checkpoint or a hub name."""

import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import torch
import transformers
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedsd.base.single_file import load_single_file

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen SD 1.x model. `size`: side of its own pictures in pixels; `sha`: SHA-256 of its weights."""

    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    scheduler: Any
    size: int
    sha: str
    device: torch.device

    def pipeline(self) -> Any:
        """Return stock diffusers' pipeline around the same modules."""
        return StableDiffusionPipeline(
            vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet,
            scheduler=self.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Clip:
    """An open_clip model in evaluation mode. `size`: side of its pictures; `dim`: length of its embeddings."""

    model: Any
    tokenizer: Any
    size: int
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def tiny_folder() -> Path:
    """Return the folder of the embedded weights.

    They live in a package of their own: a Flower app bundle carries code only, and its copy of `fedsd` shadows the
    installed one, but `fedsd_tiny` is not in the bundle and so resolves to the installation.
    """
    try:
        return Path(str(importlib.resources.files("fedsd_tiny")))
    except ModuleNotFoundError:
        raise ValueError(
            'base.name = "tiny" needs the embedded weights, which come with the installed package: run `pip '
            "install fedsd` in the environment that runs Flower, or set base.name to a folder"
        ) from None


def default_device() -> torch.device:
    """Return the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def load(name: str, precision: str = "float32") -> Base:
    """Return the base `name` on this process's device, cached: a Ray actor serves many clients with one copy.

    name: "tiny", a diffusers folder, a .safetensors or .ckpt file, or a hub name (needs a network).
    Raises ValueError naming what is missing when `name` is no SD 1.x model.
    """
    pipe = _pipeline(name, PRECISIONS[precision])
    _check_sd1(name, pipe)
    device = default_device()
    for module in (pipe.unet, pipe.text_encoder, pipe.vae):
        module.requires_grad_(False).eval().to(device)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    size = int(pipe.unet.config.sample_size) * factor
    return Base(
        pipe.unet, pipe.text_encoder, pipe.vae, pipe.tokenizer, pipe.scheduler, size,
        weights_sha(pipe.unet, pipe.text_encoder, pipe.vae), device,
    )  # fmt: skip


def _pipeline(name: str, dtype: torch.dtype) -> Any:
    path = tiny_folder() / "base" if name == "tiny" else Path(name).expanduser()
    options: dict[str, Any] = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()  # bars of many actors would drown a run's log
    if path.is_file():
        return load_single_file(path, dtype)
    if path.is_dir():
        _check_folder(path)
    elif path.suffix in (".safetensors", ".ckpt") or name.startswith((".", "/", "~")):
        raise ValueError(f"base {name!r} does not exist; {_REMEDY}")
    try:
        return StableDiffusionPipeline.from_pretrained(
            path if path.is_dir() else name, local_files_only=path.is_dir(), **options
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        wrong = "cannot be loaded" if path.is_dir() else "is neither a path nor a model that could be fetched"
        raise ValueError(f"base {name!r} {wrong} ({error}); {_REMEDY}") from error


def _check_folder(path: Path) -> None:
    if not (path / "model_index.json").exists():
        raise ValueError(f"base folder {path} holds no model_index.json, so it is no diffusers pipeline; {_REMEDY}")
    index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    parts = ("unet", "text_encoder", "vae", "tokenizer", "scheduler")
    lacking = [part for part in parts if part not in index or not (path / part).is_dir()]
    if lacking:
        raise ValueError(f"base folder {path} lacks {', '.join(lacking)}, so it is no Stable Diffusion 1.x; {_REMEDY}")


_REMEDY = 'set base.name to "tiny", to a folder that diffusers saved, or to a Stable Diffusion 1.x checkpoint file'


def _check_sd1(name: str, pipe: Any) -> None:
    channels, width = pipe.unet.config.in_channels, pipe.unet.config.cross_attention_dim
    if channels != 4 or not isinstance(width, int) or width != pipe.text_encoder.config.hidden_size:
        raise ValueError(
            f"base {name!r} has {channels} latent channels and cross-attention width {width} "
            f"(text encoder {pipe.text_encoder.config.hidden_size}); SD 1.x has 4 channels and equal widths; {_REMEDY}"
        )
    prediction = pipe.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"base {name!r} predicts {prediction!r}; training knows epsilon and v_prediction; {_REMEDY}")


def weights_sha(*modules: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and values of all weights, so two nodes can tell that they agree."""
    digest = hashlib.sha256()
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def clip_sha(folder: str = "") -> str:
    """Return the SHA-256 of the open_clip model's file: embeddings of different models cannot be compared."""
    return hashlib.sha256((_clip_folder(folder) / "open_clip_model.safetensors").read_bytes()).hexdigest()


def _clip_folder(folder: str) -> Path:
    return Path(folder) if folder else tiny_folder() / "clip"


@lru_cache(maxsize=1)
def load_clip(folder: str = "") -> Clip:
    """Return the embedded open_clip model, or the one in `folder` (open_clip_config.json and .safetensors)."""
    path = _clip_folder(folder)
    config = json.loads((path / "open_clip_config.json").read_text(encoding="utf-8"))
    model = open_clip.model.CLIP(**config["model_cfg"])
    model.load_state_dict(
        {
            k: v.float() if v.is_floating_point() else v
            for k, v in load_file(path / "open_clip_model.safetensors").items()
        }
    )
    model = model.requires_grad_(False).eval().to(default_device())
    text, preprocess = config["model_cfg"]["text_cfg"], config["preprocess_cfg"]
    tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
    return Clip(
        model, tokenizer, config["model_cfg"]["vision_cfg"]["image_size"], config["model_cfg"]["embed_dim"],
        tuple(preprocess["mean"]), tuple(preprocess["std"]),
    )  # fmt: skip
