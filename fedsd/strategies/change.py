"""By how much the mix moves from one round to the next: what convergence is judged by (l.22 of Algorithm 1)."""

import numpy as np

from fedsd.lowrank import LoRA, lora_norm, stack_loras
from fedsd.strategies.round import Round
from fedsd.tangent_mean import Arrays, arrays_norm, tangent_sum


def relative_change(lora_mix: LoRA, arrays_mix: Arrays, previous: Round | None) -> float | None:
    """‖mix - mix before‖ / ‖mix before‖ over factors and arrays; None without a mix before, or with one of length 0."""
    if previous is None:
        return None
    before = previous.arrays.get("mix", {})
    size = np.hypot(lora_norm(previous.lora_mix), arrays_norm(before))
    # what is in one of the two alone has moved from or to 0
    signed = [(lora, sign) for lora, sign in ((lora_mix, 1), (previous.lora_mix, -1)) if lora]
    lora_moved = stack_loras([lora for lora, _ in signed], [sign for _, sign in signed]) if signed else {}
    nothing = {name: np.zeros_like(values) for name, values in {**before, **arrays_mix}.items()}
    arrays_moved = tangent_sum([{**nothing, **arrays_mix}, {**nothing, **before}], [1, -1])
    moved = np.hypot(lora_norm(lora_moved), arrays_norm(arrays_moved))
    return float(moved / size) if size > 0 else None
