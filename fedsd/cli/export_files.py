"""`fedsd export`: a run's adapters, a node's tokens and x_mid as files that other programs open.

Files lie as in the program's own folder, so that a user copies the whole into it. Each adapter has its settings and
trigger words in its header, a cover picture beside it, and there is a model card for all of them.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from fedsd.base import adapters, denoise, load
from fedsd.base.load import Base
from fedsd.cli.comfy import Start, make_latent
from fedsd.cli.export_card import export_card
from fedsd.cli.export_models import export_models
from fedsd.cli.grids import parameters_text
from fedsd.cli.model_spec import About, header, model_name
from fedsd.cli.run_config import read_config, require_factors
from fedsd.cli.sampling import finished
from fedsd.export import embedding, for_diffusers, for_kohya
from fedsd.hybrid.neutral import NAME, load_neutral
from fedsd.lowrank import LoRA
from fedsd.privacy.words import held_in, registered_below
from fedsd.store import DIFFUSERS_FILE, PrivateFolder, RunFolder, write_file

TOKENS = "learned_embeds"  # as textual inversion's trainers name the file
LEFT_OUT = ("fedavg",)  # a baseline; exported when it is named
Pack = Callable[[LoRA, Mapping[str, str]], bytes]


@dataclass(frozen=True)
class Program:
    """Where a program looks for its files. lora: path of an adapter, of "title" and "name"; note: file beside it."""

    lora: str
    cover: str
    embeddings: str
    pack: Pack
    note: str = ""
    latents: str = ""


PROGRAMS = {
    "diffusers": Program(
        f"{{name}}/{DIFFUSERS_FILE}", "{name}/cover.png", "embeddings",
        lambda lora, texts: for_diffusers(lora, {}, texts),
    ),
    "comfyui": Program(
        "models/loras/{title}.safetensors", "models/loras/{title}.png", "models/embeddings", for_kohya, latents="input"
    ),
    "a1111": Program(
        "models/Lora/{title}.safetensors", "models/Lora/{title}.png", "embeddings", for_kohya,
        note="models/Lora/{title}.json",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What to export, and how it is tried for the cover. adapters: none for all; trigger: empty for none; client: whose
    tokens, empty for none; start: of x_mid, for programs that take latents.
    """

    to: str
    adapters: tuple[str, ...]
    trigger: str
    prompt: str
    steps: int
    guidance: float
    seed: int
    client: str = ""
    start: Start | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a program that is not known, or that takes no latents."""
        if self.to not in PROGRAMS:
            raise ValueError(f"--to must be one of {', '.join(PROGRAMS)}; got {self.to!r}")
        if self.start is not None and not PROGRAMS[self.to].latents:
            able = [name for name, program in PROGRAMS.items() if program.latents]
            raise ValueError(f"{self.to} opens no latents; give --latent with --to {' or '.join(able)}")


def export_run(folder: Path, out: Path, wanted: Wanted, private_root: Path) -> list[Path]:
    """Write the latest round's adapters, and what else is wanted, below `out`; returns the files.

    Raises ValueError when there is no round, adapter, client or token as named, and for trigger words that are
    registered as private.
    """
    program, run = PROGRAMS[wanted.to], RunFolder(folder)
    word = held_in(wanted.trigger, registered_below(private_root))
    if word is not None:
        raise ValueError(f"--trigger holds the private word {word!r}, and exported files are made to be given away")
    if not read_config(folder).shares_factors:
        if wanted.to != "diffusers" or wanted.client or wanted.start:
            require_factors(
                folder, f"--to {wanted.to} with tokens or latents" if wanted.client else f"--to {wanted.to}"
            )
        return export_models(finished(folder), out, wanted.adapters)
    state, loras = _chosen(run, wanted.adapters)
    tokens = _tokens(private_root, wanted.client) if wanted.client else {}
    base = load.load(read_config(folder).base.name)
    abouts = [_about(run, state, name, base, wanted) for name in loras]
    files = []
    for about in abouts:
        files += _write_adapter(out, program, base, about, loras[about.name], wanted)
    files += [
        _write(out / program.embeddings / f"{_plain(token)}.safetensors", embedding(token, vectors), mode=0o600)
        for token, vectors in tokens.items()
    ]
    if wanted.start is not None:
        lora_neu = load_neutral(run.path, int(state["round"])).lora
        latent = make_latent(base, lora_neu, wanted.start)
        files.append(_write(out / program.latents / f"{run.path.name}-x_mid.latent", latent))
    covers = {about.name: program.cover.format(title=about.title, name=about.name) for about in abouts}
    card = export_card(abouts, wanted.to, covers, sorted(tokens), wanted.prompt)
    return [*files, _write(out / "README.md", card.encode())]


def _chosen(run: RunFolder, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, LoRA]]:
    """The latest round's state and the adapters of it that are named, neutralised where they were."""
    server_round = run.latest_round()
    if server_round is None:
        raise ValueError(f"{run.path} has no complete round yet; wait for the first one (fedsd watch {run.path})")
    state, loras = run.load_round(server_round)
    there = {name: lora for name, lora in loras.items() if lora and "/" not in name}
    unknown = sorted(set(names) - set(there))
    if unknown:
        raise ValueError(
            f"round {server_round} of {run.path} has no adapter {unknown[0]!r}; choose from {', '.join(there)}"
        )
    if NAME in there:
        there[NAME] = load_neutral(run.path, server_round).lora
    return state, {name: there[name] for name in names or sorted(set(there) - set(LEFT_OUT))}


def _tokens(private_root: Path, client: str) -> Mapping[str, Any]:
    """The textual-inversion tokens in a node's private folder, by name."""
    private = PrivateFolder(private_root, client)
    kept = private.load(TOKENS)
    if kept is None or not kept[0]:
        raise ValueError(f"{private.path} holds no {TOKENS}.safetensors, so {client} has no token; leave out --client")
    return kept[0]


def _about(run: RunFolder, state: Mapping[str, Any], name: str, base: Base, wanted: Wanted) -> About:
    finished = (run.path / "ckpt" / f"r{int(state['round']):02d}" / "state.json").stat().st_mtime
    return About(
        run=run.path.name, name=name, config=read_config(run.path), state=state, size=base.size,
        date=datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds"), trigger=wanted.trigger,
        prediction=base.scheduler.config.prediction_type, steps=wanted.steps, guidance=wanted.guidance,
    )  # fmt: skip


def _write_adapter(out: Path, program: Program, base: Base, about: About, lora: LoRA, wanted: Wanted) -> list[Path]:
    cover, text = _cover(base, about, lora, wanted)
    names = {"title": about.title, "name": about.name}
    packed = program.pack(lora, header(replace(about, cover=cover)))
    files = [_write(out / program.lora.format(**names), packed)]
    files.append(_write(out / program.cover.format(**names), _png(cover, text)))
    if program.note:
        files.append(_write(out / program.note.format(**names), _note(about)))
    return files


def _cover(base: Base, about: About, lora: LoRA, wanted: Wanted) -> tuple[Image.Image, str]:
    """A picture by the adapter, and the text that tells A1111 how it was made."""
    prompt = ", ".join(part for part in (wanted.prompt, wanted.trigger) if part)
    with adapters.adapted(base, lora):
        made = denoise.generate(base, [prompt], [wanted.seed], steps=wanted.steps, guidance=wanted.guidance)
    settings = {
        "Steps": wanted.steps, "Sampler": "DDIM", "CFG scale": wanted.guidance, "Seed": wanted.seed,
        "Size": f"{base.size}x{base.size}", "Model": model_name(about.config),
    }  # fmt: skip
    return Image.fromarray(made[0]), parameters_text(f"{prompt} <lora:{about.title}:1>", settings)


def _png(picture: Image.Image, text: str) -> bytes:
    chunks, packed = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text("parameters", text)
    picture.save(packed, "PNG", pnginfo=chunks)
    return packed.getvalue()


def _note(about: About) -> bytes:
    """What A1111 shows of an adapter and puts into the prompt, as its own editor writes it."""
    note = {
        "description": f"Federated run {about.run}, {about.name}", "sd version": "SD1",
        "activation text": about.trigger, "preferred weight": 1, "notes": about.hint,
    }  # fmt: skip
    return json.dumps(note, indent=1).encode()


def _plain(token: str) -> str:
    """<user-s> -> user-s: ComfyUI and A1111 know a token by its file's name."""
    name = token.strip("<>")
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise ValueError(f"the token {token!r} cannot name a file; train it under another name, such as <user-s>")
    return name


def _write(file: Path, content: bytes, mode: int = 0o644) -> Path:
    write_file(file, content, mode)
    return file
