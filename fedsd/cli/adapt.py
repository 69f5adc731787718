"""`fedsd adapt`: a client that a SPIRE run has not seen gets its embedding, and nothing else of the model changes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedsd import config as configuration
from fedsd import wire
from fedsd.base import load
from fedsd.base.load import Base
from fedsd.base.training import Pictures, Shared
from fedsd.base.weights import replaced, weight
from fedsd.cli.export_models import save_model
from fedsd.cli.run_config import read_config
from fedsd.client_app import CACHE, Node, keep, prepare
from fedsd.data import shares
from fedsd.data.example import Example, Layout
from fedsd.data.folder import read
from fedsd.lowrank import Array
from fedsd.methods import spire
from fedsd.methods.table import METHODS, Place
from fedsd.privacy import key as federation
from fedsd.store import PrivateFolder, RunFolder
from fedsd.strategies.arrivals import arrays_start_of, arrive, start_of
from fedsd.strategies.parts import of_parts, parts_by_method
from fedsd.strategies.round import Round, arrays_of, from_state, to_state


@dataclass(frozen=True)
class Newcomer:
    """client: its name, under which its embedding is kept; data: its pictures. adapter: cluster-0, mix, …, empty for
    what its style is nearest to. steps, lr: of the embedding, 0 for the run's own.
    """

    client: str
    data: Path
    out: Path
    adapter: str = ""
    steps: int = 0
    lr: float = 0.0
    seed: int = 0


def adapt_run(folder: Path, wish: Newcomer, root: Path) -> dict[str, Any]:
    """Fit the embedding to the latest round's backbone, keep it below `root`, and write the client's model to `out`.

    Returns {"client", "start", "model", "trained", "weights", "share", "loss_first", "loss_last", "pictures"}; share:
    trained numbers over the U-Net's. Raises ValueError for runs of another method and clients that the run knows.
    """
    run, config = RunFolder(folder), read_config(folder)
    if "spire" not in config.methods:
        raise ValueError(f'{folder} trained method.name = {config.method.name!r}; only "spire" has client embeddings')
    config = config.training("spire")
    latest = run.latest_round()
    if latest is None:
        raise ValueError(f"{folder} has no complete round yet; wait for the first one (fedsd watch {folder})")
    known = from_state(*run.load_round(latest), run.load_arrays(latest))
    if wish.client in known.clients:
        raise ValueError(f"{wish.client} is a client of this run and has its embedding; choose another --client")
    base = load.load(config.base.name)
    place = Place(config, _rank(known), root / CACHE)
    node = Node(wish.client, place, PrivateFolder(root, wish.client), _examples(config, wish.data))
    prepared = prepare(node, config, base)
    z = prepared.z if wish.adapter else as_compared(prepared.z, config, root)
    name, start = _start(known, wish.adapter, z, len(node.examples))
    parts = parts_by_method(config.spire.form, config.spire.backbone)["spire"]
    start = Shared(*of_parts(parts, start.lora, start.arrays))
    given = METHODS["spire"].settings(place)
    descent = replace(given.descent, steps=wish.steps or given.descent.steps)
    settings = replace(given, descent=descent, embedding_lr=wish.lr or given.embedding_lr)
    pictures = Pictures(prepared.latents, [example.caption for example in node.examples])
    fit = spire.adapt(base, pictures, start, {}, seed=wish.seed, settings=settings)
    unused = wire.Order(latest, place.rank, -1, wish.seed, {})  # of which no round knows: it begins with this embedding
    keep(node.private, config.run.folder or str(folder), unused, fit.own, fit.own)
    model = _write(base, start, torch.from_numpy(spire.vector(start, fit.own)), wish.out)
    trained, weights = sum(v.size for v in fit.own.values()), sum(p.numel() for p in base.unet.parameters())
    progress = {"loss_first": fit.progress.loss_first, "loss_last": fit.progress.loss_last}
    about = {"client": wish.client, "start": name, "model": str(model), "pictures": len(node.examples)}
    return about | {"trained": trained, "weights": weights, "share": trained / weights} | progress


def as_compared(z: Array, config: configuration.Config, root: Path) -> Array:
    """Return a newcomer's z (D,) as the run's own were sent: turned by the key of its federation, kept below `root`.

    ValueError when there is no key: an unturned z would be near no cluster, or near a wrong one.
    """
    if config.style.key == "none":
        return z
    if not (root / federation.FILE).is_file():
        raise ValueError(
            f"the run's styles are turned by the key of its devices, and {root} holds no {federation.FILE}; set "
            "--private-dir to where it is, or choose what to start from with --adapter"
        )
    return federation.turn(z, federation.read_key(root / federation.FILE))


def line_of(result: dict[str, Any]) -> str:
    """Return what `adapt_run` did, in a few lines."""
    return (
        f"{result['client']}: {result['trained']} numbers of {result['weights']} of the U-Net "
        f"({100 * result['share']:.2g} %) fitted to {result['pictures']} pictures, from {result['start']}\n"
        f"loss   {result['loss_first']:.4f} -> {result['loss_last']:.4f}\n{result['model']}"
    )


def _examples(config: configuration.Config, data: Path) -> tuple[Example, ...]:
    """The pictures of a folder, listed by the run's index where it has one of that name."""
    if config.data.index and (data / config.data.index).is_file():
        return shares.own(config.data, data)
    return read(data, Layout(template=config.data.template))


def _rank(known: Round) -> int:
    return max((factor.rank for factor in known.lora_mix.values()), default=1)


def _start(known: Round, adapter: str, z: Any, n: int) -> tuple[str, Shared]:
    """What the client starts from, and its name: as asked for, or as the server would decide for it."""
    if not adapter:
        found = arrive(z, n, known)
        name = {"reuse": f"cluster-{found.cluster}", "new": "mix"}.get(found.kind, f"cluster-{found.cluster} and mix")
        return name, Shared(start_of(found, known), arrays_start_of(found, known))
    loras, arrays = to_state(known)[1], arrays_of(known)
    if adapter not in loras or "/" in adapter:
        there = ", ".join(sorted(name for name in loras if "/" not in name))
        raise ValueError(f"round {known.server_round} has no adapter {adapter!r}; choose from {there}")
    return adapter, Shared(loras[adapter], arrays.get(adapter, {}))


def _write(base: Base, start: Shared, v: torch.Tensor, out: Path) -> Path:
    """The client's model: a LoRA file, or the whole of it where the backbone's weights were trained whole."""
    if start.lora:
        return spire.export(base, start, v.numpy(), out).parent
    bias = f"{spire.LAYER}.bias"
    with spire.carried(base, start), replaced(base, {bias: weight(base, bias).data + v.to(base.device)}):
        return save_model(base, out)
