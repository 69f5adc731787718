"""Whether the IES takes an ask: what it offers, what it limits, and the refusals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedsd.hybrid.protocol import Ask


class Refused(Exception):  # noqa: N818  an answer, not a fault
    """An answer with an HTTP status of 400 or more; retry_after: seconds after which asking again makes sense."""

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Limits:
    """What one ask may cost. timeout: seconds; queue: runs that may wait; cache: bytes of kept latents.

    max_size: side of the largest picture in pixels; None for the base's own.
    """

    max_body: int = 2**20
    max_steps: int = 100
    max_size: int | None = None
    timeout: float = 60.0
    queue: int = 16
    cache: int = 512 * 2**20


@dataclass(frozen=True)
class Offer:
    """What an engine computes with: the base, its own picture size, pixels per latent.

    schedulers, most_steps: SHA-256 and most steps by sampler. text_shape: of one prompt's embeddings, (tokens, width).
    """

    base_sha: str
    size: int
    pixels_per_latent: int
    schedulers: Mapping[str, str]
    most_steps: Mapping[str, int]
    text_shape: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def check(ask: Ask, offer: Offer, limits: Limits, lora_sha: str) -> None:
    """Raise Refused (422) for what is not allowed, and (409) where device and server do not hold the same things."""
    largest = limits.max_size or offer.size
    if ask.scheduler not in offer.schedulers:
        raise Refused(
            422, "this scheduler cannot be split: whoever resumes would lack its memory of earlier steps, as with "
            f"PNDM, DPM++ and UniPC; choose from {', '.join(offer.schedulers)}",
        )  # fmt: skip
    most = min(limits.max_steps, offer.most_steps[ask.scheduler])
    if ask.steps > most:
        raise Refused(422, f"steps is {ask.steps}; this server takes at most {most} with {ask.scheduler}")
    if ask.server_steps > ask.steps:
        raise Refused(422, f"server_steps is {ask.server_steps}, more than all {ask.steps} steps")
    if ask.size > largest or ask.size % offer.pixels_per_latent:
        raise Refused(
            422, f"size is {ask.size}; it must be a multiple of {offer.pixels_per_latent} and at most {largest}"
        )
    for what, asked, held in (
        ("base", ask.base_sha, offer.base_sha),
        ("scheduler config", ask.scheduler_sha, offer.schedulers[ask.scheduler]),
        ("neutral adapter", ask.lora_sha or lora_sha, lora_sha),
    ):
        if asked != held:
            raise Refused(409, f"the device's {what} is {asked[:12]}, the server's {held[:12]}; both must use the same")
