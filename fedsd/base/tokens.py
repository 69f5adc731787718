"""Textual-inversion tokens on a base (Gal et al. 2022, arXiv 2208.01618): a new word whose vectors are learnt.

A token has one vector or several. As in diffusers, `<user-s>` with three vectors stands in the tokenizer as `<user-s>`,
`<user-s>_1` and `<user-s>_2`, and a prompt that holds the first is read as holding all three.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from fedsd.base.load import Base
from fedsd.lowrank import Array
from fedsd.store import write_file

FILE = "learned_embeds.safetensors"


@dataclass(frozen=True, eq=False)
class Token:
    """A new word. name: as it stands in prompts, such as `<user-s>`; vectors: (k, width) float32."""

    name: str
    vectors: Array

    def __post_init__(self) -> None:
        """Raise ValueError unless the name can be told from other words and the vectors are finite."""
        if self.name != self.name.lower().strip() or not self.name or re.search(r"\s", self.name):
            raise ValueError(
                f"{self.name!r} cannot be a token; give it a name in lower case without blanks, such as <user-s>"
            )
        if self.vectors.ndim != 2 or not self.vectors.size or not np.isfinite(self.vectors).all():
            raise ValueError(
                f"the vectors of {self.name} must be finite numbers (k, width) with k at least 1, got shape "
                f"{self.vectors.shape}; learn the token anew"
            )

    @property
    def names(self) -> list[str]:
        """One name for each vector, as the tokenizer gets them."""
        return [self.name, *(f"{self.name}_{i}" for i in range(1, len(self.vectors)))]


@dataclass(frozen=True)
class Placeholder:
    """A token to be learnt. vectors: how many; initial: words that say roughly what it shall mean.

    template: how it gets into a caption, with {caption} and {token}.
    """

    name: str = "<user-s>"
    vectors: int = 1
    initial: str = "style"
    template: str = "{caption}, {token} style"

    def __post_init__(self) -> None:
        """Check the template."""
        if "{token}" not in self.template or "{caption}" not in self.template:
            raise ValueError(f"token.template must hold {{caption}} and {{token}}, got {self.template!r}")

    def at_start(self, base: Base, kept: Array | None) -> Token:
        """Return the token as it was kept, or as the initial words say; ValueError when it has other vectors."""
        vectors = word_vectors(base, self.initial, self.vectors) if kept is None else kept
        if len(vectors) != self.vectors:
            raise ValueError(
                f"the token to go on from has {len(vectors)} vectors, not {self.vectors}; set token.vectors as it was"
            )
        return Token(self.name, vectors)

    def captions(self, base: Base, captions: Sequence[str]) -> list[str]:
        """Return captions that speak of the token, which `base` carries; ValueError where it would be cut off."""
        written = [self.template.replace("{caption}", c).replace("{token}", self.name) for c in captions]
        length = base.text_encoder.config.max_position_embeddings
        ids = base.tokenizer(expanded(base.tokenizer, written), truncation=True, max_length=length).input_ids
        first = token_embedding(base).first
        for caption, found in zip(written, ids, strict=True):
            if sum(i >= first for i in found) < self.vectors:
                raise ValueError(
                    f"the caption {caption!r} is longer than the {length} tokens of the text encoder and loses "
                    f"{self.name}; shorten it, or put {{token}} first in token.template"
                )
        return written


class ExtendedEmbedding(nn.Module):
    """An embedding table with more rows: ids below `first` are the table's, the rest rows of `vectors`."""

    def __init__(self, table: nn.Module, first: int, vectors: Tensor) -> None:
        super().__init__()
        self.table, self.first = table, first
        self.vectors = nn.Parameter(vectors, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (..., width) of ids (...)."""
        known: Tensor = self.table(ids.clamp(max=self.first - 1))
        new = self.vectors[(ids - self.first).clamp(min=0)].to(known.dtype)
        return torch.where((ids >= self.first)[..., None], new, known)


def with_token(base: Base, token: Token) -> Base:
    """Return the base with a new word; `base` itself is not touched, and both share all weights.

    Raises ValueError when the name is a word already, and when the vectors are not as wide as the base's.
    """
    width = base.text_encoder.config.hidden_size
    if token.vectors.shape[1] != width:
        raise ValueError(
            f"the vectors of {token.name} have {token.vectors.shape[1]} numbers but the base's words have {width}; "
            "the token belongs to another base"
        )
    for name in token.names:
        if len(base.tokenizer.tokenize(name)) == 1:
            raise ValueError(f"{name} is in the vocabulary already; choose another name, such as <user-s>")
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens(token.names)
    text_encoder = sharing_copy(base.text_encoder)
    first = tokenizer.convert_tokens_to_ids(token.name)
    vectors = torch.from_numpy(token.vectors.astype(np.float32)).to(base.device)
    text_encoder.set_input_embeddings(ExtendedEmbedding(text_encoder.get_input_embeddings(), first, vectors))
    return replace(base, tokenizer=tokenizer, text_encoder=text_encoder)


def sharing_copy(module: Any) -> Any:
    """Return a copy of a module whose layers can be exchanged; its weights are those of the original, not copies."""
    shared: dict[int, Any] = {id(values): values for values in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def token_embedding(base: Base) -> ExtendedEmbedding:
    """Return what holds the vectors of the token that was added last; ValueError when there is none."""
    embedding = base.text_encoder.get_input_embeddings()
    if not isinstance(embedding, ExtendedEmbedding):
        raise ValueError("the base carries no token; add one by with_token first")
    return embedding


def encode_variants(carrying: Base, ids: Tensor, which: Tensor, tokens: Array) -> Tensor:
    """Return text states (N, length, width) of ids (N, length), row i with the token's vectors tokens[which[i]]."""
    embedding = token_embedding(carrying)
    rows = torch.from_numpy(np.ascontiguousarray(tokens, np.float32)).flatten(0, 1).to(carrying.device)
    kept, embedding.vectors.data = embedding.vectors.data, rows
    try:
        shifted = ids + which[:, None] * tokens.shape[1]
        states: Tensor = carrying.text_encoder(torch.where(ids >= embedding.first, shifted, ids)).last_hidden_state
    finally:
        embedding.vectors.data = kept
    return states


def word_vectors(base: Base, words: str, k: int = 1) -> Array:
    """Return (k, width) float32 to start from: the vectors of words that say roughly what the token shall mean.

    With more words than k, neighbours are averaged; with fewer, they are repeated. ValueError when there is no word.
    """
    if k < 1:
        raise ValueError(f"a token needs at least 1 vector, got {k}")
    ids = base.tokenizer(words, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError("a token starts from a word, and none was given; set token.initial, for example to style")
    with torch.no_grad():
        rows = base.text_encoder.get_input_embeddings()(torch.tensor(ids, device=base.device)).float().cpu().numpy()
    if len(rows) < k:
        return rows[np.arange(k) % len(rows)]
    return np.stack([part.mean(0) for part in np.array_split(rows, k)])


def expanded(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Return the prompts with all names of a token of several vectors where its first one stands."""
    added = tokenizer.get_added_vocab()
    written = list(prompts)
    for name in (name for name in added if f"{name}_1" in added):
        names = [name]
        while f"{name}_{len(names)}" in added:
            names.append(f"{name}_{len(names)}")
        first = re.compile(re.escape(name) + r"(?!_\d)")
        written = [" ".join(names).join(first.split(prompt)) for prompt in written]
    return written


def save_token(token: Token, folder: Path) -> Path:
    """Write a token for stock diffusers' `load_textual_inversion(file)`; returns the file."""
    write_file(folder / FILE, save({token.name: np.ascontiguousarray(token.vectors, np.float32)}, {"format": "pt"}))
    return folder / FILE


def load_token(file: Path) -> Token:
    """Read what `save_token` or diffusers wrote; ValueError when it is damaged or holds something else."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if len(found) != 1:
        raise ValueError(f"{file} holds {len(found)} arrays and so is no token; give a learned_embeds.safetensors")
    name, vectors = found.popitem()
    return Token(name, np.atleast_2d(vectors.astype(np.float32)))
