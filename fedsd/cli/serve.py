"""`fedsd serve`: the Inference Edge Server of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsd.base import load
from fedsd.cli.run_config import read_config, require_factors
from fedsd.hybrid.admission import Limits
from fedsd.hybrid.credentials import read_credentials
from fedsd.hybrid.engine import LocalEngine
from fedsd.hybrid.local import Address, serve_local
from fedsd.hybrid.server import build_app, log_to_stderr


@dataclass(frozen=True)
class Machinery:
    """What computes: engine "local" is one process, "ray" is `replicas` copies of the base on Ray Serve."""

    engine: str = "local"
    replicas: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for an engine that there is not, or one that has no replicas."""
        if self.engine not in ("local", "ray"):
            raise ValueError(f"--engine must be local or ray; got {self.engine!r}")
        if self.engine == "local" and self.replicas != 1:
            raise ValueError(f"the local engine is one copy of the base, not {self.replicas}; give --engine ray")


def serve(
    folder: Path, address: Address, credentials: Path | None, limits: Limits, machinery: Machinery,
    listening: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve the base and the neutral adapter of the run in `folder` until told to stop.

    Raises ValueError when others than this machine could ask without a credential.
    """
    if credentials is None and not address.loopback:
        raise ValueError(
            f"{address.host} can be reached by others: give --credentials FILE, with one credential a line"
        )
    require_factors(folder, "fedsd serve")
    base_name = read_config(folder).base.name
    admitted = read_credentials(credentials) if credentials else ()
    if machinery.engine == "ray":
        from fedsd.hybrid.ray_serve import serve_ray  # Ray takes seconds to import

        serve_ray(base_name, folder, admitted, limits, address, machinery.replicas, listening)
        return
    log_to_stderr()
    serve_local(build_app(LocalEngine(lambda: load.load(base_name)), folder, admitted, limits), address, listening)
