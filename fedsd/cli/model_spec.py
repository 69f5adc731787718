"""What an exported adapter says of itself in its header, under the names that trainers and collections agree on.

`modelspec.*` is the Stability AI Model Metadata Standard 1.0.1; `ss_*` are the fields of kohya's sd-scripts, which
A1111, ComfyUI's managers and others show; `fedsd.*` are this project's own. Values are texts.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fedsd.cli.report.outcome import version
from fedsd.config import Config

THUMBNAIL = 256  # pixels


@dataclass(frozen=True, eq=False)
class About:
    """What there is to say of an adapter. name: cluster-0, mix or neutral; state: of its round; date: ISO 8601.

    size: side of the base's pictures in pixels; prediction: "epsilon" or "v_prediction"; steps, guidance: settings that
    it was tried with.
    """

    run: str
    name: str
    config: Config
    state: Mapping[str, Any]
    date: str
    size: int
    prediction: str
    trigger: str
    steps: int
    guidance: float
    cover: Image.Image | None = None

    @property
    def title(self) -> str:
        """Run and adapter in one word, which is also the name of its files."""
        return f"{self.run}-{self.name}"

    @property
    def hint(self) -> str:
        """How to use it, in one line."""
        words = f"Put {self.trigger!r} into the prompt. " if self.trigger else ""
        return f"{words}Scale 1, DDIM, {self.steps} steps, CFG scale {self.guidance:g}, {self.size}x{self.size}."

    @property
    def images(self) -> int:
        """Number of pictures that the adapter was trained on."""
        return sum(int(entry["n"]) for entry in self.members.values())

    @property
    def members(self) -> dict[str, Any]:
        """Its cluster, or all clusters of a global adapter, by id."""
        clusters: Mapping[str, Any] = self.state.get("clusters", {})
        own = self.name.removeprefix("cluster-")
        return {own: clusters[own]} if own in clusters and own != self.name else dict(clusters)


def header(about: About) -> dict[str, str]:
    """Return the texts of an adapter's header."""
    return {key: str(value) for part in (_spec, _kohya, _own) for key, value in part(about).items()}


def _spec(about: About) -> dict[str, object]:
    texts: dict[str, object] = {
        "sai_model_spec": "1.0.1", "architecture": "stable-diffusion-v1/lora", "implementation": "diffusers",
        "title": about.title, "resolution": f"{about.size}x{about.size}", "date": about.date,
        "description": f"Style adapter of federated run {about.run}: {about.name}.", "usage_hint": about.hint,
        "tags": "federated-learning, style",
        "prediction_type": "v" if about.prediction == "v_prediction" else "epsilon",
    }  # fmt: skip
    if about.trigger:
        texts["trigger_phrase"] = about.trigger
    if about.cover is not None:
        texts["thumbnail"] = thumbnail(about.cover)
    return {f"modelspec.{key}": value for key, value in texts.items()}


def _kohya(about: About) -> dict[str, object]:
    config, train = about.config, about.config.train
    tags = {about.run: {about.trigger: about.images}} if about.trigger else {}
    return {
        "ss_output_name": about.title, "ss_base_model_version": "sd_v1", "ss_sd_model_name": model_name(config),
        "ss_v2": False, "ss_tag_frequency": json.dumps(tags), "ss_num_train_images": about.images,
        "ss_resolution": f"({about.size}, {about.size})", "ss_batch_size_per_device": train.batch_size,
        "ss_max_train_steps": int(about.state["round"]) * train.steps, "ss_learning_rate": train.lr,
        "ss_unet_lr": train.lr, "ss_text_encoder_lr": train.text_lr if config.lora.text_encoder else None,
        "ss_min_snr_gamma": train.min_snr_gamma or None, "ss_caption_dropout_rate": train.caption_dropout,
        "ss_optimizer": "torch.optim.AdamW", "ss_seed": config.run.seed,
        "ss_mixed_precision": {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[train.precision],
    }  # fmt: skip


def _own(about: About) -> dict[str, object]:
    betas = {key: round(float(entry["beta"]), 6) for key, entry in about.members.items()}
    devices = sum(len(entry["members"]) for entry in about.members.values())
    return {
        "fedsd.version": version(), "fedsd.run": about.run, "fedsd.round": about.state["round"],
        "fedsd.adapter": about.name, "fedsd.devices": devices, "fedsd.images": about.images,
        "fedsd.beta": json.dumps(betas), "fedsd.strategy": about.config.strategy.name,
    }  # fmt: skip


def model_name(config: Config) -> str:
    """The base's name without the folder that it lies in."""
    return config.base.name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def thumbnail(cover: Image.Image) -> str:
    """A small JPEG as a data URL."""
    small, packed = cover.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(packed, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
