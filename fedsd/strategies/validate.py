"""Which replies of a round may be used, and for every other one the reason, in words that name the remedy.

Norms are those of the product B A over all layers, and of arrays with them: a norm of factors could be dodged by
(c B, A / c).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedsd.lowrank import LoRA, lora_norm
from fedsd.strategies.parts import FACTORS, SHIFTS, Parts, of_parts, parts_by_method, parts_in
from fedsd.tangent_mean import Arrays, arrays_norm, other_directions
from fedsd.wire import Update

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Limits:
    """What a reply may look like.

    max_rank: largest LoRA rank; max_norm: largest ‖ΔΘ‖_F; norm_over_median: the same as a multiple of the median of the
    round, asked from three replies on that share the same parts; n_over_median: larger image counts are taken as this
    multiple of the median; parts: what each method shares.
    """

    max_rank: int = 256
    max_norm: float = 1e4
    norm_over_median: float = 10.0
    n_over_median: float = 100.0
    parts: Mapping[str, Parts] = field(default_factory=parts_by_method)


@dataclass(frozen=True)
class Expected:
    """What all replies must share. layers: of each part, name of a layer, or of an array, -> its shape; z_size: D;
    base_sha: of the frozen base; directions: hash of its decomposition, of those that share shifts.
    """

    layers: Mapping[str, Shapes]
    z_size: int
    base_sha: str
    directions: str = ""


@dataclass(frozen=True)
class Verdict:
    """good: usable updates, sorted, weights capped; reasons: client -> why it was dropped; capped: client -> n used."""

    good: tuple[Update, ...]
    reasons: Mapping[str, str]
    capped: Mapping[str, int]


def check_update(update: Update, limits: Limits) -> float:
    """‖ΔΘ‖_F of an update that is sound by itself; ValueError naming what is wrong with it otherwise."""
    if update.n < 1:
        raise ValueError(f"it trained on {update.n} images; it needs at least 1")
    if not 1 <= update.rank <= limits.max_rank:
        raise ValueError(
            f"its rank is {update.rank}; ranks must be 1 to {limits.max_rank} (check lora.ranks on that node)"
        )
    if not np.isfinite([update.loss_first, update.loss_last]).all():
        raise ValueError(f"its loss went from {update.loss_first} to {update.loss_last}; lower train.lr on that node")
    if not np.isfinite([update.seconds, update.images_per_second]).all():
        raise ValueError(f"it reports {update.seconds} seconds and {update.images_per_second} images per second")
    length = float(np.linalg.norm(update.z))
    if not abs(length - 1) < 1e-2:  # written so that NaN fails
        raise ValueError(f"its style embedding has length {length:.3g}; it must be finite and of length 1")
    _check_adapter(update)
    _check_parts(update, limits)
    return _checked_norm(update, limits)


def compare(
    updates: Sequence[Update], norms: Mapping[str, float], limits: Limits, expected: Expected | None = None
) -> Verdict:
    """Hold sound updates against each other; what is not in `expected` is what most of those share that train it.

    norms: ‖ΔΘ‖_F of each by client, from `check_update`.
    """
    if not updates:
        return Verdict((), {}, {})
    updates = sorted(updates, key=lambda update: update.client)
    expected = filled(expected, majority(updates))
    reasons = {update.client: why for update in updates if (why := _unlike(update, expected))}
    alike: dict[Parts, dict[str, float]] = {}
    for update in updates:
        if update.client not in reasons:
            alike.setdefault(parts_in(update.lora, update.arrays), {})[update.client] = norms[update.client]
    for theirs in alike.values():
        reasons |= _too_large(theirs, limits)
    good = [update for update in updates if update.client not in reasons]
    capped = _capped(good, limits)
    return Verdict(tuple(replace(update, n=capped.get(update.client, update.n)) for update in good), reasons, capped)


def beside(update: Update, norm: float, norms: Mapping[str, float], limits: Limits, expected: Expected) -> str:
    """Why an update does not fit with what is expected and with the norms of those that came before it, or ""."""
    others = dict(norms) | {update.client: norm}
    return _unlike(update, expected) or _too_large(others, limits).get(update.client, "")


def majority(updates: Sequence[Update]) -> Expected:
    """What most updates share: layers of each part (on a tie the larger set, then that of the first client), size of
    z, base.
    """
    found = [shapes(update.lora, update.arrays) for update in updates]
    layers = {}
    for part in sorted({part for one in found for part in one}):
        votes = Counter(tuple(sorted(one[part].items())) for one in found if part in one)
        usual = max(votes, key=lambda shape: (votes[shape], len(shape)))
        layers[part] = dict(usual)
    z_size = Counter(update.z.size for update in updates).most_common(1)[0][0]
    base_sha = Counter(update.base_sha for update in updates).most_common(1)[0][0]
    decomposed = Counter(update.directions for update, one in zip(updates, found, strict=True) if SHIFTS in one)
    directions = decomposed.most_common(1)[0][0] if decomposed else ""
    return Expected(layers, z_size, base_sha, directions)


def filled(expected: Expected | None, usual: Expected) -> Expected:
    """`expected`, with what is usual of the parts that it knows nothing of."""
    if expected is None:
        return usual
    directions = expected.directions if SHIFTS in expected.layers else usual.directions
    return replace(expected, layers={**usual.layers, **expected.layers}, directions=directions)


def _check_adapter(update: Update) -> None:
    if not update.lora and not update.arrays:
        raise ValueError("its reply holds no adapter; it must send one factor pair for each layer, or arrays")
    for name, values in update.arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or Inf; lower train.lr on that node")
    for layer, factor in update.lora.items():
        if factor.rank > update.rank:
            raise ValueError(f"layer {layer} has rank {factor.rank}, more than the {update.rank} it reports")
        for side, array in (("B", factor.B), ("A", factor.A)):
            if not np.isfinite(array).all():
                raise ValueError(f"layer {layer}.{side} holds NaN or Inf; lower train.lr on that node")


def _check_parts(update: Update, limits: Limits) -> None:
    wanted, found = limits.parts[update.method], parts_in(update.lora, update.arrays)
    if found != wanted:
        raise ValueError(
            f"it trains {update.method!r}, which shares {_listed(wanted)}, and sends {_listed(found)}; give it the "
            "run's settings of that method"
        )


def _listed(parts: Parts) -> str:
    return " and ".join(sorted(parts))


def _checked_norm(update: Update, limits: Limits) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # huge factors overflow, which is the finding
        try:
            norm = float(np.hypot(lora_norm(update.lora), arrays_norm(update.arrays)))
        except ValueError:
            norm = float("inf")
    if norm > limits.max_norm:
        raise ValueError(
            f"its update has norm {norm:.3g}; at most {limits.max_norm:.3g} is accepted (lower train.lr there)"
        )
    return norm


def _unlike(update: Update, expected: Expected) -> str:
    """How the update differs from what is expected, or ""."""
    if update.base_sha != expected.base_sha:
        return (
            f"it trained base {update.base_sha[:12]}, not {expected.base_sha[:12]}; give all nodes the same base.name"
        )
    if update.z.size != expected.z_size:
        return f"its style embedding has {update.z.size} numbers instead of {expected.z_size}; use one style encoder"
    found = shapes(update.lora, update.arrays)
    for part in found or expected.layers:
        if why := _other_shapes(found.get(part, {}), expected.layers[part]):
            return why
    return other_directions(update.directions, expected.directions if SHIFTS in found else "")


def _other_shapes(found: Shapes, wanted: Shapes) -> str:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        return f"{len(missing)} layers are missing, such as {missing[0]}"
    if unknown:
        return f"{len(unknown)} layers are unknown, such as {unknown[0]}"
    for layer, shape in wanted.items():
        if found[layer] != shape:
            return f"layer {layer} has shape {found[layer]} instead of {shape}"
    return ""


def _too_large(norms: Mapping[str, float], limits: Limits) -> dict[str, str]:
    """Updates far larger than the others'. Two replies cannot say which of them is the odd one."""
    middle = sorted(norms.values())[(len(norms) - 1) // 2] if norms else 0.0
    if len(norms) < 3 or middle == 0:
        return {}
    return {
        name: f"its update has norm {norm:.3g}, {norm / middle:.3g} times the median of the round; "
        f"at most {limits.norm_over_median:g} times is accepted"
        for name, norm in norms.items()
        if norm > limits.norm_over_median * middle
    }


def _capped(updates: Sequence[Update], limits: Limits) -> dict[str, int]:
    """Image counts above the cap, so that no client can outweigh all others by its word alone."""
    if not updates:
        return {}
    cap = int(limits.n_over_median * sorted(update.n for update in updates)[(len(updates) - 1) // 2])
    return {update.client: cap for update in updates if update.n > cap}


def shapes(lora: LoRA, arrays: Arrays) -> dict[str, Shapes]:
    """Shape of each layer's product and of each array, by part."""
    found: dict[str, Shapes] = {}
    for part in parts_in(lora, arrays):
        _, held = of_parts({part}, {}, arrays)
        products = {layer: factor.shape for layer, factor in lora.items()} if part == FACTORS else {}
        found[part] = {**products, **{name: values.shape for name, values in held.items()}}
    return found
