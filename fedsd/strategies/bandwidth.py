"""How fast each client's uploads are, and what of its adapter fits into the time that an upload may take.

A reply says when it was made, by its node's clock. The delay until it is here is transfer, latency and the difference
of two clocks; that of a profile, which is small, is latency and the same difference. What the reply takes longer than
the profile is its transfer, whatever the clocks say. It cannot be told to less than the time between two looks at the
grid, so a measured rate is at most bytes / poll: too low on a fast network, where nothing depends on it. A server
that is busy with another reply looks late, which also makes it too low and never too high.
"""

from collections.abc import Mapping

from fedsd.codec import ENCODINGS
from fedsd.lowrank import LoRA

BYTES: Mapping[str, int] = {name: int(descr[-1]) for name, descr in ENCODINGS.items()}  # of a number


def payload(lora: LoRA, rank: int, encoding: str) -> int:
    """Bytes of an adapter of these layers at `rank`; int8 sends a float32 scale for each column of B and row of A."""
    numbers = sum(sum(factor.shape) for factor in lora.values()) * rank
    scales = 2 * rank * len(lora) * BYTES["float32"] if encoding == "int8" else 0
    return numbers * BYTES[encoding] + scales


def ladder(encoding: str, rank: int) -> list[tuple[str, int]]:
    """Encodings and ranks from the best to the cheapest: smaller numbers first, then half the rank, down to 1."""
    by_size = sorted(BYTES, key=lambda name: -BYTES[name])
    steps = [(name, rank) for name in by_size[by_size.index(encoding) :]]
    while rank > 1:
        rank //= 2
        steps.append((by_size[-1], rank))
    return steps


def fitting(lora: LoRA, rank: int, encoding: str, bandwidth: float, seconds: float) -> tuple[str, int]:
    """The best (encoding, rank) whose upload takes at most `seconds` at `bandwidth` bytes/s; else the cheapest."""
    steps = ladder(encoding, rank)
    fits = (step for step in steps if payload(lora, step[1], step[0]) <= bandwidth * seconds)
    return next(fits, steps[-1])


class Uplinks:
    """What is known of each client's upload. encoding: the best to ask for; seconds: budget, 0 for none; resolution:
    seconds below which no transfer can be told.
    """

    def __init__(self, encoding: str, seconds: float, resolution: float) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"wire.encoding must be one of {', '.join(ENCODINGS)}; got {encoding!r}")
        if not seconds >= 0:
            raise ValueError(f"wire.upload-seconds must be >= 0, got {seconds}; 0 sets no limit")
        self.encoding, self.seconds, self.resolution = encoding, seconds, resolution
        self._asked: dict[str, str] = {}  # client -> encoding of its last order
        self._bandwidth: dict[str, float] = {}  # client -> bytes per second of its last upload
        self._small: dict[str, float] = {}

    def met(self, client: str, delay: float) -> None:
        """Take note of the delay of a small message, in seconds."""
        self._small[client] = delay

    def uploaded(self, client: str, size: int, delay: float) -> float | None:
        """Bytes per second of an upload of `size` bytes; None where no small message gives the measure."""
        if client not in self._small or not delay - self._small[client] < float("inf"):
            return None
        self._bandwidth[client] = size / max(delay - self._small[client], self.resolution)
        return self._bandwidth[client]

    def order(self, client: str, rank: int, lora: LoRA) -> tuple[str, int]:
        """The encoding and the rank at which the client is asked for an adapter of these layers; rank is its own."""
        chosen = self.encoding, rank
        if self.seconds and lora and client in self._bandwidth:
            chosen = fitting(lora, rank, self.encoding, self._bandwidth[client], self.seconds)
        self._asked[client] = chosen[0]
        return chosen

    def encoding_of(self, client: str) -> str:
        """The encoding in which the client was last asked for its adapter."""
        return self._asked.get(client, self.encoding)
