"""README.md of an export: a model card that hubs read, and where each file goes."""

import json
from collections.abc import Mapping, Sequence

from fedsd.cli.model_spec import About, model_name
from fedsd.cli.report.model_card import LIMITS, TAGS
from fedsd.cli.report.outcome import version

USE = {
    "diffusers": "```python\npipe.load_lora_weights({name!r})  # a folder of this export\n```",
    "comfyui": "Copy `models` and `input` into ComfyUI's folder and load the adapter by a *Load LoRA* node.",
    "a1111": "Copy `models` and `embeddings` into the web UI's folder and write `<lora:{title}:1>` into the prompt.",
}
TOKEN_USE = {
    "diffusers": "`pipe.load_textual_inversion('embeddings/{file}.safetensors')`, then `{token}` in the prompt",
    "comfyui": "`embedding:{file}` in the prompt",
    "a1111": "`{file}` in the prompt",
}


def export_card(abouts: Sequence[About], to: str, covers: Mapping[str, str], tokens: Sequence[str], prompt: str) -> str:
    """Return the card of adapters exported for the program `to`. covers: by adapter; tokens: among the files."""
    first = abouts[0]
    front: dict[str, object] = {
        "base_model": model_name(first.config), "library_name": "diffusers", "tags": TAGS,
        "widget": [{"text": prompt, "output": {"url": covers[about.name]}} for about in abouts],
    }  # fmt: skip
    if first.trigger:
        front["instance_prompt"] = first.trigger
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {first.run}", ""]
    lines += [
        f"Style adapters for `{model_name(first.config)}`, round {first.state['round']} of a federated run "
        f"(fedsd {version()}). No picture left its device.",
        "",
        USE[to].format(name=first.name, title=first.title),
        "",
        f"Trigger words: {first.trigger or 'none'}. {first.hint}",
        "",
        "| adapter | images | cover |",
        "|---|---|---|",
        *(f"| {about.name} | {about.images} | ![{about.name}]({covers[about.name]}) |" for about in abouts),
        "",
    ]
    if tokens:
        lines += ["## Private tokens", "", "They say what they were trained on; give them to nobody.", ""]
        lines += [f"- {TOKEN_USE[to].format(token=token, file=token.strip('<>'))}" for token in tokens] + [""]
    return "\n".join([*lines, *_latents(to), LIMITS])


def _latents(to: str) -> list[str]:
    if to != "comfyui":
        return []
    return [
        "## x_mid",
        "",
        "A file in `input` ending in `.latent` holds the early steps. Load it by *LoadLatent* and go on by",
        "*KSampler (Advanced)*, set as its header says under `fedsd.ksampler`: no noise added, `start_at_step` the",
        "server's steps, sampler `ddim`, scheduler `ddim_uniform`.",
        "",
    ]
