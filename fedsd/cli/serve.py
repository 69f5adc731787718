"""`fedsd serve`: the Inference Edge Server of a run."""

from collections.abc import Callable
from pathlib import Path

from fedsd.base import load
from fedsd.cli.run_config import read_config
from fedsd.hybrid.admission import Limits
from fedsd.hybrid.credentials import read_credentials
from fedsd.hybrid.engine import LocalEngine
from fedsd.hybrid.local import Address, serve_local
from fedsd.hybrid.server import build_app, log_to_stderr


def serve(
    folder: Path, address: Address, credentials: Path | None, limits: Limits, listening: Callable[[str], None]
) -> None:
    """Serve the base and the neutral adapter of the run in `folder` until told to stop.

    Raises ValueError when others than this machine could ask without a credential.
    """
    if credentials is None and not address.loopback:
        raise ValueError(
            f"{address.host} can be reached by others: give --credentials FILE, with one credential a line"
        )
    base_name = read_config(folder).base.name
    admitted = read_credentials(credentials) if credentials else ()
    log_to_stderr()
    serve_local(build_app(LocalEngine(lambda: load.load(base_name)), folder, admitted, limits), address, listening)
