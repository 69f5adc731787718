"""What simulated nodes keep to themselves, which the pictures of a node's own model need."""

from pathlib import Path

from fedsd.client_app import OWN, kept_before
from fedsd.lowrank import Array
from fedsd.store import PrivateFolder


def kept_by(root: Path, client: str) -> dict[str, Array]:
    """Return what a node keeps below `root` after its last round; SystemExit where it keeps nothing."""
    private = PrivateFolder(root, client)
    if (kept := private.load(OWN)) is None:
        raise SystemExit(f"{client} keeps nothing below {root}; run again into a new --out")
    return kept_before(private, kept[1]["run"], kept[1]["round"])
