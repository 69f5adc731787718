"""Who may ask: one credential a line in a file, sent as `Authorization: Bearer …`."""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

SHORTEST = 16


def read_credentials(file: Path) -> tuple[str, ...]:
    """Return the credentials of a file; empty lines and those that start with # do not count.

    Raises ValueError when there is none, and for one that is too short to be safe; none is ever shown.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ValueError(f"the credentials file {file} cannot be read: {error.strerror}") from None
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found or min(map(len, found)) < SHORTEST:
        raise ValueError(
            f"{file} must hold one credential a line, each of at least {SHORTEST} characters; make one with: "
            "openssl rand -hex 32"
        )
    return found


def admits(credentials: Sequence[str], header: str) -> bool:
    """Say whether an Authorization header holds one of the credentials; with none to hold, everybody may ask."""
    if not credentials:
        return True
    kind, _, given = header.partition(" ")
    digest = hashlib.sha256(given.strip().encode()).digest()
    matches = [hmac.compare_digest(digest, hashlib.sha256(one.encode()).digest()) for one in credentials]
    return kind.lower() == "bearer" and any(matches)
