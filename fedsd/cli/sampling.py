"""Pictures from the adapters of a run: which there are, whose style they have, and sample grids."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from fedsd import config as configuration
from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import scheduler_named
from fedsd.base.training import Shared
from fedsd.cli.run_config import read_config
from fedsd.client_app import CACHE, private_root
from fedsd.data import shares
from fedsd.data.example import Example
from fedsd.data.partition import partition
from fedsd.lowrank import LoRA
from fedsd.methods.table import METHODS, Place
from fedsd.store import Arrays, RunFolder
from fedsd.strategies.parts import drawn_by, of_parts, parts_in

Painter = Callable[..., np.ndarray]  # of prompts, as `pictures`
STEPS, GUIDANCE = 20, 2.5  # of the embedded base
SMALL = 128  # pixels of a side


@dataclass(frozen=True)
class Finished:
    """A run's last complete round, and what its clients hold: `examples` of each client, known in simulation only.

    loras, arrays: by name, see `strategies.round.to_state`.
    """

    folder: RunFolder
    config: configuration.Config
    state: Mapping[str, object]
    loras: Mapping[str, LoRA]
    examples: Mapping[str, tuple[Example, ...]]
    arrays: Mapping[str, Arrays] = field(default_factory=dict)

    def shared(self, name: str) -> Shared:
        """What is drawn by of what clients share under a name, cluster-0, mix, …: see `strategies.parts.drawn_by`."""
        lora, arrays = self.loras[name], self.arrays.get(name, {})
        return Shared(*of_parts(drawn_by(parts_in(lora, arrays))[1], lora, arrays))

    @property
    def style_of(self) -> dict[str, str]:
        """The style that most of a client's pictures have, by client."""
        return {
            client: Counter(example.style for example in mine).most_common(1)[0][0]
            for client, mine in self.examples.items()
        }

    @property
    def cluster_of(self) -> dict[str, str]:
        """Id of each client's cluster."""
        clients: Mapping[str, Mapping[str, object]] = self.state["clients"]  # type: ignore[assignment]
        return {client: str(entry["cluster"]) for client, entry in clients.items()}

    def captions(self, style: str) -> list[str]:
        """All distinct captions that clients of `style` hold, sorted."""
        return sorted({e.caption for mine in self.examples.values() for e in mine if e.style == style})

    def cluster_of_style(self, style: str) -> str:
        """Name of the adapter of the cluster that most clients of `style` are in."""
        ids = Counter(self.cluster_of[c] for c, s in self.style_of.items() if s == style and c in self.cluster_of)
        return f"cluster-{ids.most_common(1)[0][0]}" if ids else "mix"


def finished(path: Path, server_round: int | None = None) -> Finished:
    """Return round `server_round`, or the last complete one, of the run in `path`.

    Raises ValueError when there is no such round.
    """
    config = read_config(path)
    folder = RunFolder.open(path)
    number = folder.latest_round() if server_round is None else server_round
    if number is None:
        raise ValueError(f"{path} has no complete round yet; wait for the first one (fedsd watch {path})")
    state, loras = folder.load_round(number)
    held = holdings(config, list(state["clients"]))
    return Finished(folder, config, state, loras, held, folder.load_arrays(number))


def holdings(config: configuration.Config, clients: Sequence[str]) -> dict[str, tuple[Example, ...]]:
    """Return the pictures of simulated clients c0, c1, ...; nothing for clients that have folders of their own."""
    numbers = [int(c[1:]) for c in clients if c[:1] == "c" and c[1:].isdigit()]
    if len(numbers) != len(clients) or not numbers:
        return {}
    count = max(config.run.min_nodes, *(n + 1 for n in numbers))
    examples = shares.pool(config.data, count, config.run.seed, private_root(config.node.private_dir))
    parts = partition(examples, config.data.partition, count, config.run.seed, concentration=config.data.concentration)
    return {f"c{n}": tuple(examples[i] for i in parts[n]) for n in numbers}


@dataclass(frozen=True)
class SamplerSettings:
    """How a base is drawn. sampler: a name in `schedulers.WITHOUT_MEMORY`; guidance: of the prompt, 1 or more."""

    sampler: str
    guidance: float

    def on(self, base: Base) -> Base:
        """Return the base with this sampler."""
        return replace(base, scheduler=scheduler_named(base, self.sampler))


LARGE = SamplerSettings("ddim", 7.5)
SMALL_ALONE, SMALL_ADAPTED = SamplerSettings("ddim", 1.5), SamplerSettings("ddpm", GUIDANCE)


def usual_settings(base: Base, adapted: bool = True) -> SamplerSettings:
    """Return how a base is drawn unless told otherwise: DDIM and a guidance of 7.5 are usual for Stable Diffusion.

    Bases of small pictures, as the embedded one, want little guidance, with an adapter more. DDPM adds noise at each
    step, so that a later step mends what a half-trained adapter got wrong in an earlier one, where DDIM carries it on.
    """
    if base.size > SMALL:
        return LARGE
    return SMALL_ADAPTED if adapted else SMALL_ALONE


def seed_of(prompt: str, number: int) -> int:
    """Return the seed of a prompt's picture, the same for every adapter so that rows can be compared."""
    return zlib.crc32(f"{prompt}/{number}".encode())


def sample(
    base: Base, lora: LoRA, prompts: Sequence[str], *, steps: int = STEPS, guidance: float = GUIDANCE
) -> np.ndarray:
    """Return uint8 pictures (N, H, W, 3) of `prompts` with `lora` on the base."""
    with adapters.adapted(base, lora):
        return pictures(base, prompts, steps=steps, guidance=guidance)


def pictures(
    base: Base, prompts: Sequence[str], *, said: Sequence[str] = (), steps: int = STEPS, guidance: float = GUIDANCE
) -> np.ndarray:
    """Return uint8 pictures (N, H, W, 3) of `prompts` by the base as it computes now; said: in its own words."""
    seeds = [seed_of(prompt, i) for i, prompt in enumerate(prompts)]
    return denoise.generate(base, list(said or prompts), seeds, steps=steps, guidance=guidance)


@contextmanager
def carried(run: Finished, base: Base, shared: Shared) -> Iterator[Painter]:
    """Within the block, draw by a model of the run: what clients share, without what each keeps to itself."""
    usual = usual_settings(base)
    base = usual.on(base)
    if not shared.lora and not shared.arrays:
        yield partial(pictures, base, guidance=usual.guidance)
        return
    name, _ = drawn_by(parts_in(shared.lora, shared.arrays))
    place = Place(run.config.training(name), 1, private_root(run.config.node.private_dir) / CACHE)
    method = METHODS[name]
    with method.carried(base, shared, place) as model:
        yield lambda prompts, **how: pictures(
            model, prompts, said=method.written(model, place, prompts), **{"guidance": usual.guidance, **how}
        )


def grid_prompts(run: Finished, columns: int) -> list[str]:
    """Return prompts that as many styles as possible know, spread over the alphabet."""
    styles = sorted(set(run.style_of.values()))
    known = [set(run.captions(style)) for style in styles]
    common = sorted(set.intersection(*known)) if known else []
    pool = common if len(common) >= columns else sorted(set().union(*known))
    return [pool[i] for i in np.linspace(0, len(pool) - 1, min(columns, len(pool))).astype(int)] if pool else []


def titles(run: Finished, prompts: Sequence[str]) -> list[str]:
    """Return what each prompt shows: its label where captions are made from labels, else the prompt."""
    labels = {e.caption: e.label for mine in run.examples.values() for e in mine}
    return [labels.get(prompt) or prompt for prompt in prompts]


def rows(run: Finished) -> list[tuple[str, Shared]]:
    """Return the rows of a sample grid: base, FedAvg, then one per style, or per cluster where styles are not known."""
    styles = sorted(set(run.style_of.values()))
    named = [(style, run.cluster_of_style(style)) for style in styles]
    if not named:
        named = [(name, name) for name in sorted(run.loras) if name.startswith("cluster-")]
    models = [("FedAvg", run.shared("fedavg")), *((label, run.shared(name)) for label, name in named)]
    return [("base", Shared()), *models]
