"""What is averaged number by number: spectrum shifts and generators of rotations (SODA), changes of weights (SPIRE).

A mean of rotations is no rotation. Their generators lie in the tangent space at the identity, where means and sums stay
inside, and turn into a rotation again afterwards.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedsd.lowrank import Array

Arrays = Mapping[str, Array]


def tangent_mean(updates: Sequence[Arrays], n: Sequence[float]) -> dict[str, Array]:
    """Σ_i n_i x_i / Σ_i n_i of each array; n: image counts, positive. ValueError as `tangent_sum`."""
    total = float(sum(n))
    if not total > 0:
        raise ValueError(f"image counts must sum to more than 0, got {list(n)}")
    return tangent_sum(updates, [count / total for count in n])


def tangent_sum(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, Array]:
    """Σ_i w_i x_i of each array, summed in float64 in the given order, as float32.

    Raises ValueError when there is nothing to sum, when names or shapes differ, and for NaN and Inf.
    """
    if not updates or len(updates) != len(weights) or not np.isfinite(weights).all():
        raise ValueError(f"got {len(updates)} updates and weights {list(weights)}; give one finite weight for each")
    first = {name: values.shape for name, values in updates[0].items()}
    for index, update in enumerate(updates):
        shapes = {name: values.shape for name, values in update.items()}
        different = sorted(name for name in {*first, *shapes} if first.get(name) != shapes.get(name))
        if different:
            name = different[0]
            raise ValueError(
                f"update {index} and update 0 differ in {name}, {shapes.get(name)} against {first.get(name)}; "
                "all clients must train the same layers of the same base with the same method"
            )
        if unsound := [name for name, values in update.items() if not np.isfinite(values).all()]:
            raise ValueError(f"{unsound[0]} of update {index} holds NaN or Inf; drop that client's update")
    total = {}
    for name in sorted(first):
        summed = np.zeros(first[name])
        for update, w in zip(updates, weights, strict=True):
            summed += float(w) * update[name].astype(np.float64)
        total[name] = summed.astype(np.float32)
    return total


def mean_where_held(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, Array]:
    """Σ_i w_i x_i / Σ_i w_i of each array over those that hold it; equal weights where all of theirs are 0.

    Raises ValueError as `tangent_sum`.
    """
    names_of: dict[tuple[int, ...], list[str]] = {}
    for name in sorted({name for update in updates for name in update}):
        names_of.setdefault(tuple(i for i, update in enumerate(updates) if name in update), []).append(name)
    found: dict[str, Array] = {}
    for holders, names in names_of.items():
        theirs = [float(weights[i]) for i in holders]
        held = [{name: updates[i][name] for name in names} for i in holders]
        found |= tangent_mean(held, theirs if sum(theirs) > 0 else [1.0] * len(theirs))
    return dict(sorted(found.items()))


def arrays_norm(arrays: Arrays) -> float:
    """Length of all numbers together, √Σ ‖x‖²."""
    return float(sum(np.square(values, dtype=np.float64).sum() for values in arrays.values()) ** 0.5)


def other_directions(found: str, usual: str) -> str:
    """Why shifts cannot be averaged with the others': hashes of the decomposition they refer to differ; "" if not."""
    if found == usual:
        return ""
    return (
        f"it decomposed the base's weights into other directions ({found[:12] or 'none'}, not {usual[:12] or 'none'}); "
        "give it the others' base.name and soda.form, or copy their decomposition to its cache"
    )
