"""What the page draws with: the base, the adapters of a run's latest round, the server, the words that stay here."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.cli import sampling
from fedsd.cli.history import natural
from fedsd.cli.report.outcome import read_outcome
from fedsd.cli.run_config import read_config, require_factors
from fedsd.cli.ui.watched import watched
from fedsd.hybrid import client
from fedsd.hybrid.client import Answer, Drawing, Drawn, Remote, Unserved
from fedsd.lowrank import LoRA
from fedsd.privacy.words import held_in, registered_below
from fedsd.store import RunFolder

MOST_SHARE = 0.5  # of the steps on the server
BASE, FEDAVG, MIX = "", "fedavg", "mix"


@dataclass(frozen=True)
class Wish:
    """What the user set. adapter: its name in the round, "" for none. generic: p_gen, which the server reads.

    share: of the steps that the server makes, 0 to 0.5. local_scale: of the adapter; mix_loras: of the neutral one
    on the server (Fig. 5).
    """

    adapter: str
    prompt: str
    generic: str
    seed: int
    steps: int
    share: float
    guidance: float
    local_scale: float
    mix_loras: float

    def __post_init__(self) -> None:
        """Raise ValueError for what no picture can be drawn with."""
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**63 - 1), ("number of steps", self.steps, 1, 1000),
            ("server's share", self.share, 0, MOST_SHARE), ("guidance", self.guidance, 1, 50),
            ("strength of the style", self.local_scale, 0, 10), ("strength on the server", self.mix_loras, 0, 2),
        ):  # fmt: skip
            if value is None or not low <= value <= high:
                shown = "empty" if value is None else value
                raise ValueError(f"the {name} must be from {low} to {high}; it is {shown}")

    @property
    def server_steps(self) -> int:
        """T_early: the steps for the server."""
        return server_steps(self.steps, self.share)

    @property
    def drawing(self) -> Drawing:
        """The wish in the client's terms."""
        split = denoise.Split(self.steps, self.server_steps, self.guidance)
        return Drawing(self.prompt, self.generic, self.seed, split, mix_loras=self.mix_loras)


def server_steps(steps: int, share: float) -> int:
    """Return T_early of a share: at least one step, unless the share is 0."""
    return max(1, round(share * steps)) if share > 0 else 0


@dataclass(frozen=True, eq=False)
class Moment:
    """A picture while it is drawn: `done` steps, `by_server` of them there, None while it is asked.

    latents: (1, 4, h, w), once there are any. why: the server made none. drawn: the end.
    """

    done: int
    by_server: int | None
    latents: torch.Tensor | None = None
    why: str = ""
    drawn: Drawn | None = None


class Studio:
    """One base, one run, at most one server; draws one picture at a time."""

    def __init__(self, base: Base, folder: Path, remote: Remote | None, private_root: Path) -> None:
        """Raise ValueError when `folder` is no run, or has no complete round yet."""
        require_factors(folder, "the page")
        self.base, self.remote, self.folder = base, remote, RunFolder(folder)
        self._private_root, self._lock = private_root, threading.Lock()
        self._run: tuple[int, sampling.Finished] | None = None
        self.config = read_config(folder)
        self.number()

    def number(self) -> int:
        """Return the latest complete round."""
        latest = self.folder.latest_round()
        if latest is None:
            path = self.folder.path
            raise ValueError(f"{path} has no complete round yet; wait for the first one (fedsd watch {path})")
        return latest

    def words(self) -> tuple[str, ...]:
        """Return the words that never leave this machine, as they are registered now."""
        return registered_below(self._private_root)

    def private_word(self, text: str) -> str | None:
        """Return the private word that a text holds, or None."""
        return held_in(text, self.words())

    def request(self, wish: Wish) -> str:
        """Return the whole request for the server, as JSON."""
        return client.compose(self.base, wish.drawing).model_dump_json(indent=2)

    def run(self) -> sampling.Finished:
        """Return the latest round, without its adapters; its pictures are known in simulation, where they still lie."""
        if self._run is None or self._run[0] != self.number():
            self._run = self.number(), self._read()
        return self._run[1]

    def _read(self) -> sampling.Finished:
        state: dict[str, Any] = read_outcome(self.folder.path).state or {}
        try:
            examples = sampling.holdings(self.config, list(state["clients"]))
        except ValueError:
            examples = {}
        return sampling.Finished(self.folder, self.config, state, {}, examples)

    def draw(self, wish: Wish, *, ask: bool = True) -> Iterator[Moment]:
        """Draw, and yield how far it is; ask: let the server begin, if there is one.

        Raises ValueError for what the user has to mend, as `client.draw` does.
        """
        remote = replace(self.remote, words=self.words()) if self.remote and ask else None

        def work(tell: Callable[[Moment], None]) -> None:
            with self._lock, adapters.adapted(self.base, self._lora(wish.adapter)):
                adapters.set_scale(self.base, wish.local_scale)
                self._draw(wish, remote, tell)

        return watched(work)

    def _draw(self, wish: Wish, remote: Remote | None, tell: Callable[[Moment], None]) -> None:
        asked = remote is not None and wish.server_steps > 0
        by_server, why = 0, ""

        def on_server(came: Answer | Unserved) -> None:
            nonlocal by_server, why
            if isinstance(came, Answer):
                by_server = wish.server_steps
                tell(Moment(by_server, by_server, torch.from_numpy(came.x_mid)))
            else:
                why = str(came)
                tell(Moment(0, 0, why=why))

        tell(Moment(0, None if asked else 0))
        drawn = client.draw(
            self.base, wish.drawing, remote, on_server=on_server,
            on_step=lambda step, x: tell(Moment(step + 1, by_server, x, why)),
        )  # fmt: skip
        tell(Moment(wish.steps, by_server, drawn.latents, why, drawn))

    def picture(self, latents: torch.Tensor) -> np.ndarray:
        """Return the uint8 picture (H, W, 3) of latents (1, 4, h, w), finished or not."""
        picture: np.ndarray = denoise.decode_latents(self.base, latents.to(self.base.device))[0]
        return picture

    def adapter_file(self, name: str) -> Path | None:
        """Return where an adapter of the latest round lies; None for no adapter."""
        return self.folder.path / "ckpt" / f"r{self.number():02d}" / f"{name}.safetensors" if name else None

    def _lora(self, name: str) -> LoRA:
        return self.folder.load_adapter(self.number(), name) if name else {}


def choices(run: sampling.Finished) -> list[tuple[str, str]]:
    """Return (label, name) of every adapter that somebody may want: clusters, clients' own, the mix, none."""
    styles, state = run.style_of, run.state
    clusters: dict[str, Any] = state["clusters"]  # type: ignore[assignment]
    clients: dict[str, Any] = state["clients"]  # type: ignore[assignment]
    found = []
    for key in sorted(clusters, key=int):
        found.append((_label(f"Cluster {key}", _styles(styles, clusters[key]["members"])), f"cluster-{key}"))
    for name in sorted(clients, key=natural):
        found.append((_label(f"Client {name}, personal", _styles(styles, [name])), f"clients/{name}"))
    return [*found, ("Mix of all clusters", MIX), ("Plain base, no adapter", BASE)]


def _styles(styles: dict[str, str], members: Sequence[str]) -> str:
    return " and ".join(sorted({styles[name] for name in members if name in styles}))


def _label(name: str, styles: str) -> str:
    return f"{name} · {styles}" if styles else name
