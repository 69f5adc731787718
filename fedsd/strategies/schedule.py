"""How a run goes along, apart from what is computed in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """How a run goes along.

    seed: all others derive from it; fraction: of the clients asked in a round, (0, 1]; availability: client -> share
    of the rounds in which it may be asked, where that is not 1; min_nodes: waited for; tolerance: the run ends when the
    mix changes by less than this share, 0 never; encoding: of adapters sent, float32 or float16; upload_encoding: of
    adapters that come back; upload_seconds: that an upload may take, see `bandwidth`, 0: no limit; stack_cap: columns
    to which replies are folded as they come, see `intake.Streamed`, 0: they are held; profile_timeout, poll: seconds;
    max_actor_deaths: simulation workers that may die before the run is given up.
    """

    seed: int = 0
    fraction: float = 1.0
    availability: Mapping[str, float] = field(default_factory=dict)
    min_nodes: int = 1
    tolerance: float = 0.0
    encoding: str = "float32"
    upload_encoding: str = "float32"
    upload_seconds: float = 0.0
    stack_cap: int = 0
    profile_timeout: float = 600.0
    poll: float = 0.2
    max_actor_deaths: int = 3
