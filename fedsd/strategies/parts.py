"""The parts of what clients share, and which of them each method trains: all that a mixed fleet has in common.

LoRA and SPIRE's backbone are factors of the same products, so they are averaged together; the other parts are averaged
among those who train them. A client is sent the parts that its method can use, and no others.
"""

from collections.abc import Collection

from fedsd.lowrank import LoRA
from fedsd.seeded import SCALARS, TOKEN
from fedsd.tangent_mean import Arrays

FACTORS, WEIGHTS, MAPS, SHIFTS, WORD = "factors", "weights", "maps", "shifts", "word"
PARTS = (FACTORS, WEIGHTS, MAPS, SHIFTS, WORD)

Parts = frozenset[str]


def parts_by_method(form: str = "bias", backbone: str = "lora") -> dict[str, Parts]:
    """Return what each method shares; form, backbone: SPIRE's, see `methods.spire.Settings`."""
    spire = {FACTORS if backbone == "lora" else WEIGHTS} | ({MAPS} if form == "projected" else set())
    return {
        "lora": frozenset({FACTORS}),
        "spire": frozenset(spire),
        "soda": frozenset({SHIFTS}),
        "zo-token": frozenset({WORD}),
    }


def part_of(name: str) -> str:
    """Return the part that an array of this name belongs to."""
    if name in (TOKEN, SCALARS):
        return WORD
    if name.startswith("embedding."):
        return MAPS
    return SHIFTS if name.endswith((".shift", ".turn")) else WEIGHTS


def parts_in(lora: LoRA, arrays: Arrays) -> Parts:
    """Return the parts that are there."""
    return frozenset({part_of(name) for name in arrays} | ({FACTORS} if lora else set()))


def of_parts(parts: Collection[str], lora: LoRA, arrays: Arrays) -> tuple[LoRA, Arrays]:
    """Return what of an adapter and its arrays belongs to `parts`."""
    chosen = {name: values for name, values in arrays.items() if part_of(name) in parts}
    return lora if FACTORS in parts else {}, chosen


def drawn_by(parts: Collection[str]) -> tuple[str, Parts]:
    """Return the method that draws a model of which these parts are there, and those of them that it takes.

    A backbone where there is one, of factors or of weights; else shifts and turns; else a word.
    """
    backbone = frozenset(parts) & {FACTORS, WEIGHTS, MAPS}
    if backbone:
        return "lora" if backbone == {FACTORS} else "spire", backbone
    return ("soda", frozenset({SHIFTS})) if SHIFTS in parts else ("zo-token", frozenset(parts))
