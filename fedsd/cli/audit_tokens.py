"""The part of `fedsd audit tokens` about words: each device learns one, and both servers are asked about it.

Rows are (server, attack, seen, defence, accuracy, chance, n, shipped).
"""

from collections.abc import Sequence

import numpy as np
import torch

from fedsd.base import denoise
from fedsd.base.load import Base, Clip
from fedsd.base.tokens import Token, with_token, word_vectors
from fedsd.base.training import Pictures
from fedsd.cli.attacker import Attacker, drawings
from fedsd.cli.sampling import Finished
from fedsd.client_app import private_root
from fedsd.data.images import pixels
from fedsd.hybrid.client import Drawing, request
from fedsd.hybrid.protocol import parse_ask
from fedsd.lowrank import Array
from fedsd.privacy import attacks
from fedsd.privacy.attacks import Guesses
from fedsd.privacy.private_token import private_token
from fedsd.store import PrivateFolder
from fedsd.strategies.roster import client_seed

IES = "IES"
STEPS = 40  # that a device takes for its word where it has learnt none yet
SPLIT = denoise.Split(20, 6, 1.5)
TokenRow = tuple[str, str, str, str, float, float, int, bool]


def learnt(run: Finished, client: str, base: Base) -> Token:
    """Return a simulated client's private word: the one in its private folder, or one learnt now and kept there."""
    private = PrivateFolder(private_root(run.config.node.private_dir), client)
    examples = run.examples[client]
    latents = denoise.encode_pixels(base, torch.from_numpy(pixels(examples, run.config.base.size or base.size)))
    pictures = Pictures(latents, [example.caption for example in examples])
    batch, seed = run.config.train.batch_size, client_seed(run.config.run.seed, 0, client)
    return private_token(private, base, pictures, steps=STEPS, batch=batch, seed=seed)


def token_rows(
    run: Finished, attacker: Attacker, truth: Guesses, base: Base, clip: Clip, labels: Sequence[str]
) -> list[TokenRow]:
    """A1 to A3 on the vectors, were they sent, and A2 on the words of the requests that the IES gets."""
    clients, chance = sorted(run.examples), 1 / len(attacker.styles)
    words = [style.replace("_", " ") for style in attacker.styles]
    table = np.concatenate([word_vectors(base, word) for word in words])
    asked = [run.config.data.template.format(label=label) for label in labels]
    known = np.stack([_states(base, [f"{prompt} in {word} style" for prompt in asked]) for word in words])
    guesses: dict[str, list[int]] = {"A1 cosine": [], "A1 L2": [], "A2 encoder": [], "A3 draw with it": []}
    for client in clients:
        token = learnt(run, client, base)
        carrying = with_token(base, token)
        spoken = [f"{prompt} in {token.name} style" for prompt in asked]
        guesses["A1 cosine"].append(attacks.nearest_vocabulary(token.vectors, table))
        guesses["A1 L2"].append(attacks.nearest_vocabulary(token.vectors, table, metric="l2"))
        guesses["A2 encoder"].append(attacks.encoder_match(_states(carrying, spoken), known))
        guesses["A3 draw with it"].append(attacks.drawn_style(drawings(carrying, clip, {}, spoken), attacker.looks))
    rows: list[TokenRow] = [
        (IES, name, "token", "none: the vector is sent", _right(found, truth), chance, len(truth), False)
        for name, found in guesses.items()
    ]
    ways = {
        "none: the style's word": [f"{{prompt}} in {words[int(style)]} style" for style in truth],
        "renamed, vector kept": ["{prompt}, <user-s> style"] * len(clients),
        "generic prompt": ["{prompt}"] * len(clients),
    }
    for defence, texts in ways.items():
        found = [attacks.encoder_match(_read_by_server(base, text, asked), known) for text in texts]
        rows.append((
            IES, "A2 encoder", "request", defence, _right(found, truth), chance, len(truth),
            defence == "generic prompt",
        ))  # fmt: skip
    return rows


def _read_by_server(base: Base, text: str, prompts: Sequence[str]) -> Array:
    """States of the prompts that the IES reads in the bytes of the requests."""
    read = []
    for prompt in prompts:
        generic = text.replace("{prompt}", prompt)
        body, _ = request(base, Drawing(prompt=prompt, generic=generic, seed=0, split=SPLIT))
        read.append(parse_ask(body).prompt)
    return _states(base, read)


def _right(guesses: Sequence[int], truth: Guesses) -> float:
    return float(np.mean(np.asarray(guesses) == truth))


def _states(base: Base, prompts: list[str]) -> Array:
    with torch.no_grad():
        states: Array = denoise.encode_prompts(base, prompts).mean(1).float().cpu().numpy()
    return states
