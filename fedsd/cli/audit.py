"""`fedsd audit tokens`: how well the attacks A1 to A6 guess a device's style from what the two servers received.

The Training Edge Server's share is read from the bytes of the run's replies (`received/`), the Inference Edge Server's
are the bytes that a device of this run would post to it. Beside what left the devices stands what would have left them
without a defence, and with others. Only a simulation can be audited: the truth has to be known.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from fedsd.base import load
from fedsd.base.load import Base, Clip
from fedsd.cli import sampling
from fedsd.cli.attacker import Attacker, drawings, know, public_pictures
from fedsd.cli.audit_tokens import token_rows
from fedsd.cli.sampling import Finished
from fedsd.client_app import Node, private_root, style_of
from fedsd.data.images import pixels
from fedsd.lowrank import Array, LoRA
from fedsd.methods.table import Place
from fedsd.privacy import attacks, key
from fedsd.privacy.attacks import Guesses
from fedsd.store import PrivateFolder, write_file
from fedsd.strategies.clustering import cluster
from fedsd.strategies.recorded import received_updates
from fedsd.wire import Update

LABELS = ("house", "cat", "tree", "car")
TES = "TES"
TRIES = 3  # keys under which devices are linked by mutual cosines: each is a search


@dataclass(frozen=True)
class Row:
    """One attack on one thing that was seen. chance: of a guess; clusters: adjusted Rand index of the server's grouping
    with this defence and the true styles, None where it does not apply; shipped: this is what a run with the
    settings as they are sends; style: the attack is on the style, not on who it was.
    """

    server: str
    attack: str
    seen: str
    defence: str
    accuracy: float
    chance: float
    n: int
    shipped: bool
    clusters: float | None = None
    style: bool = True


def audit(
    folder: Path, *, bank: Path | None = None, shadows: int = 2, keys: int = 20, mode: str = "LoRA",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Attack what the servers of the run in `folder` received; the result is also written to its audit/tokens.json.

    bank: folder of public pictures, one folder for each style; shadows: uploads that the attacker makes of each style;
    keys: how many keys an accuracy under a random key is the mean of. Returns {"mode", "styles", "clients", "rows",
    "worst"}. Raises ValueError for runs that kept no bytes, of deployed nodes, or of one style.
    """
    updates = received_updates(folder)
    run = sampling.finished(folder)
    if not run.examples:
        raise ValueError(f"the clients of {folder} held folders of their own; a run can be audited in simulation alone")
    styles = sorted({style for client, style in run.style_of.items()})
    if len(styles) < 2:
        raise ValueError(f"all clients of {folder} have the style {styles[0]}; there is nothing to guess")
    base, clip = load.load(run.config.base.name), load.load_clip()
    prompts = [run.config.data.template.format(label=label) for label in LABELS]
    say(f"the attacker prepares: public pictures of {', '.join(styles)}, {shadows} shadows of each")
    pictures = public_pictures(run.config, styles, bank, folder / "audit" / "pictures")
    attacker = know(run.config, base, clip, pictures, shadows=shadows, prompts=prompts)
    truth = np.array([styles.index(run.style_of[client]) for client in sorted(updates[max(updates)])])
    say("attacking z")
    rows = style_rows(run, updates[max(updates)], attacker, truth, clip, keys)
    say("attacking adapters and losses")
    rows += adapter_rows(run, updates, attacker, truth, base, clip, prompts)
    say("learning private words, and attacking them and the requests")
    found = token_rows(run, attacker, truth, base, clip, LABELS)
    rows += [Row(*row) for row in found]
    worst = max((row for row in rows if row.shipped and row.style), key=lambda row: row.accuracy - row.chance)
    result = {
        "mode": mode, "round": max(updates), "styles": styles, "clients": len(truth), "keys": keys, "shadows": shadows,
        "style_key": run.config.style.key, "rows": [asdict(row) for row in rows],
        "worst": {**asdict(worst), "over_chance": worst.accuracy - worst.chance},
    }  # fmt: skip
    write_file(folder / "audit" / "tokens.json", json.dumps(result, indent=1).encode())
    write_file(folder / "audit" / "tokens.md", table(result).encode())
    return result


def style_rows(
    run: Finished, updates: Mapping[str, Update], attacker: Attacker, truth: Guesses, clip: Clip, keys: int
) -> list[Row]:
    """A4 and A5 on z: plain, as received, and under each defence."""
    received = np.stack([updates[client].z for client in sorted(updates)])
    n = [updates[client].n for client in sorted(updates)]
    plain = np.stack([_plain_style(run, client, clip) for client in sorted(updates)])
    defences: dict[str, Callable[[Array, int], Array]] = {
        "none": lambda z, seed: z,
        "turned by a key": lambda z, seed: key.turn(z, _key(seed)),
        "turned, noise 0.4": lambda z, seed: key.noisy(key.turn(z, _key(seed)), 0.4, np.random.default_rng(seed)),
        "noise 0.4": lambda z, seed: key.noisy(z, 0.4, np.random.default_rng(seed)),
        "noise 0.8": lambda z, seed: key.noisy(z, 0.8, np.random.default_rng(seed)),
        "blurred by a key": lambda z, seed: key.blur(z, _key(seed)),
    }
    shipped = {"none": "none", "turn": "turned by a key"}[run.config.style.key]
    rows = _style_attacks("as received", [received], n, attacker, truth)
    for defence, hide in defences.items():
        # what was received under one key and is turned again is as likely as what another key would have given
        seen = received if defence == shipped else plain
        tries = [hide(seen, seed) for seed in range(1 if defence == "none" else keys)]
        rows += _style_attacks(defence, tries, n, attacker, truth)
        again = [hide(seen, keys + seed) for seed in range(len(tries))]
        rows += _link_rows("z", defence, tries, again, defence == shipped)
    # the received bytes are one draw of the key, and few clients are right or wrong together: the mean over keys counts
    return [replace(row, shipped=row.defence == shipped) for row in rows]


def _style_attacks(
    defence: str, tries: Sequence[Array], n: Sequence[int], attacker: Attacker, truth: Guesses
) -> list[Row]:
    groups = [cluster(Z.astype(np.float32), n, method="hdbscan").labels for Z in tries]
    fit = float(np.mean([adjusted_rand_score(truth, labels) for labels in groups]))
    ways: dict[str, Callable[[int], Sequence[int] | Guesses]] = {
        "A4 mutual cosines": lambda i: attacks.geometry(tries[i], groups[i], attacker.bank),
    }
    if tries[0].shape[1] == attacker.bank.shape[1]:
        ways |= {
            "A4 words": lambda i: [attacks.zero_shot(z, attacker.texts) for z in tries[i]],
            "A4 pictures": lambda i: [attacks.nearest_style(z, attacker.bank) for z in tries[i]],
        }
    chance = 1 / len(attacker.styles)
    return [
        Row(
            TES, name, "z", defence, _mean_right([way(i) for i in range(len(tries))], truth), chance, len(truth),
            False, fit,
        )
        for name, way in sorted(ways.items())
    ]  # fmt: skip


def _link_rows(seen: str, defence: str, first: Sequence[Array], second: Sequence[Array], shipped: bool) -> list[Row]:
    """A5: the same devices in a second federation, with another key and other names."""
    count = len(first[0])
    order = np.random.default_rng(0).permutation(count)
    direct = [attacks.linkage(b[order] @ a.T) for a, b in zip(first, second, strict=True)]
    mutual = [attacks.geometry(b[order], range(count), a) for a, b in zip(first[:TRIES], second[:TRIES], strict=True)]
    return [
        Row(TES, name, seen, defence, _mean_right(found, order), 1 / count, count, shipped, style=False)
        for name, found in (("A5 cosine", direct), ("A5 mutual cosines", mutual))
    ]


def adapter_rows(
    run: Finished, updates: Mapping[int, Mapping[str, Update]], attacker: Attacker, truth: Guesses, base: Base,
    clip: Clip, prompts: Sequence[str],
) -> list[Row]:  # fmt: skip
    """A3, A5 and A6 on adapters, and A6 on losses, as received; and on adapters turned on both sides by a key."""
    first, last = updates[min(updates)], updates[max(updates)]
    clients, chance = sorted(last), 1 / len(attacker.styles)
    begun = [first[client] for client in clients if client in first]
    marks = np.array([mark for client, mark in zip(clients, truth, strict=True) if client in first])
    loras, styles = [shadow.lora for shadow in attacker.shadows], attacker.shadow_styles
    spectra = np.stack([attacks.spectrum(lora) for lora in loras])
    losses = np.stack([shadow.losses for shadow in attacker.shadows])
    rows = []
    for defence in ("none", "turned by a key"):
        sent = [_hidden(update.lora, defence) for update in begun]
        drawn = [drawings(base, clip, _hidden(last[client].lora, defence), prompts) for client in clients]
        guessed = {
            "A3 draw with it": ([attacks.drawn_style(found, attacker.looks) for found in drawn], truth),
            "A6 products": ([attacks.shadow_adapter(lora, loras, styles) for lora in sent], marks),
            "A6 spectra": ([attacks.shadow(attacks.spectrum(lora), spectra, styles) for lora in sent], marks),
        }
        rows += [
            Row(TES, name, "adapter", defence, _mean_right([found], right), chance, len(right), defence == "none")
            for name, (found, right) in guessed.items()
        ]
        similar = _cosines([_hidden(last[client].lora, defence) for client in clients], sent)
        if len(sent) == len(clients) and max(updates) > min(updates):
            linked = [attacks.linkage(similar)]
            rows.append(Row(
                TES, "A5 cosine, next round", "adapter", defence, _mean_right(linked, np.arange(len(sent))),
                1 / len(sent), len(sent), defence == "none", style=False,
            ))  # fmt: skip
    told = [attacks.shadow(np.array([update.loss_first, update.loss_last]), losses, styles) for update in begun]
    return [*rows, Row(TES, "A6 losses", "metrics", "none", _mean_right([told], marks), chance, len(marks), True)]


def _hidden(lora: LoRA, defence: str) -> LoRA:
    return lora if defence == "none" else key.turn_adapter(lora, _key(0))


def _plain_style(run: Finished, client: str, clip: Clip) -> Array:
    """The z (D,) of a simulated client before any key."""
    examples = run.examples[client]
    node = Node(
        client, Place(run.config, 1, Path()), PrivateFolder(private_root(run.config.node.private_dir), client), examples
    )
    return style_of(node, run.config, pixels(examples, run.config.base.size or load.load(run.config.base.name).size))


def _cosines(left: Sequence[LoRA], right: Sequence[LoRA]) -> Array:
    products = attacks.inner_products(left, right)
    sizes = [np.sqrt([attacks.inner_products([one], [one])[0, 0] for one in side]) for side in (left, right)]
    cosines: Array = products / np.outer(*sizes)
    return cosines


def _mean_right(guesses: Sequence[Sequence[int] | Guesses], truth: Guesses) -> float:
    return float(np.mean([np.asarray(guess) == truth for guess in guesses]))


def _key(seed: int) -> bytes:
    return bytes(np.random.default_rng(seed).bytes(32))


def table(result: Mapping[str, Any]) -> str:
    """Return the attacks as a Markdown table, chance and the server's grouping beside, and the worst in a line."""
    lines = [
        f"{result['mode']}: {result['clients']} clients, {len(result['styles'])} styles, style.key = "
        f"{result['style_key']!r}. Yes in the last column: what the run sent as it was set.", "",
        "| server | attack | on | defence | right | chance | grouping | sent |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        fit = "" if row["clusters"] is None else f"{row['clusters']:.2f}"
        lines.append(
            f"| {row['server']} | {row['attack']} | {row['seen']} | {row['defence']} | {row['accuracy']:.3f} | "
            f"{row['chance']:.3f} | {fit} | {'yes' if row['shipped'] else ''} |"
        )
    worst = result["worst"]
    verdict = "is within" if worst["over_chance"] <= 0.05 else "MISSES"
    return "\n".join([
        *lines, "",
        f"Worst for the style, as sent: {worst['attack']} on the {worst['seen']} at the {worst['server']}, "
        f"{worst['accuracy']:.3f} against chance {worst['chance']:.3f}: {worst['over_chance']:+.3f}, "
        f"which {verdict} chance + 0.05.", "",
    ])  # fmt: skip
