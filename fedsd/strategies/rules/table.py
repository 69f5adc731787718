"""Every rule by its name, with what it may be relied on for; tests hold each rule to exactly its line.

Identities, for any clients with adapters of unequal rank unless the rule needs one rank or a shared factor:

    exact        the result's product is the weighted mean of the products (with the residual, where there is one)
    order        another order of the clients gives the same product
    best-cut     at a given rank, no other update of that rank lies nearer to the exact mean (Eckart and Young 1936)
    one          one client gets its own update back
    consensus    clients that agree on an update, at whatever rank and by whatever factors, get it back
    gauge        (B G, G⁻¹ A) in place of (B, A) changes nothing
    nested       clusters first and then everybody, by their weights, is everybody at once
    padding      columns and rows of zeros in a client's factors change nothing
    splitting    a client parted into two of half its weight changes nothing
    scaling      weights times a constant change nothing
    absence      a client of weight 0 is as good as absent
    outlier      one client in eight, a hundred times as large, moves the result by less than the honest norm
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedsd.strategies.rules.combination import Rule
from fedsd.strategies.rules.fedex import fedex
from fedsd.strategies.rules.fedit import fedit
from fedsd.strategies.rules.fedsa import fedsa
from fedsd.strategies.rules.fedsvd import fedsvd
from fedsd.strategies.rules.ffa import ffa
from fedsd.strategies.rules.flexlora import flexlora
from fedsd.strategies.rules.flora import flora
from fedsd.strategies.rules.florist import florist
from fedsd.strategies.rules.geometric_median import geometric_median
from fedsd.strategies.rules.hetlora import hetlora, zero_padding
from fedsd.strategies.rules.lora_fair import lora_fair
from fedsd.strategies.rules.multi_krum import multi_krum
from fedsd.strategies.rules.norm_clipping import norm_clipping
from fedsd.strategies.rules.raflora import raflora
from fedsd.strategies.rules.rbla import rbla
from fedsd.strategies.rules.rolora import rolora
from fedsd.strategies.rules.trimmed_mean import trimmed_mean

IDENTITIES = (
    "exact", "order", "best-cut", "one", "consensus", "gauge", "nested", "padding", "splitting", "scaling", "absence",
    "outlier",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A rule.

    holds: identities it keeps; shared: factor that all clients must share, "" for none; one_rank: it needs one rank of
    all clients; streams: it is a weighted sum of products, so that updates can be folded as they arrive; asks_clients:
    what clients have to do besides loading the adapter, "" for nothing.
    """

    combine: Rule
    holds: frozenset[str]
    shared: str = ""
    one_rank: bool = False
    streams: bool = False
    asks_clients: str = ""


def _keeps(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LINEAR = _keeps("exact order one consensus gauge nested padding splitting scaling absence")

RULES: Mapping[str, Entry] = MappingProxyType(
    {
        "fedit": Entry(fedit, _keeps("order one nested padding splitting scaling absence"), one_rank=True),
        "zero-padding": Entry(zero_padding, _keeps("order one nested padding splitting scaling absence")),
        "hetlora": Entry(hetlora, _keeps("order one padding scaling absence")),
        "rbla": Entry(rbla, _keeps("order one splitting scaling absence")),
        "raflora": Entry(raflora, _keeps("order one consensus gauge splitting scaling absence")),
        "flora": Entry(flora, _LINEAR, streams=True),
        "flexlora": Entry(
            flexlora,
            _LINEAR | {"best-cut"},
            streams=True,
        ),
        "florist": Entry(florist, _keeps("order best-cut gauge padding splitting scaling absence")),
        "fedex": Entry(
            fedex,
            _LINEAR,
            asks_clients="clients add a residual to their base",
        ),
        "ffa": Entry(ffa, _LINEAR, shared="A", one_rank=True, asks_clients="clients freeze A"),
        "rolora": Entry(rolora, _LINEAR, shared="A", one_rank=True, asks_clients="clients train B and A in turn"),
        "fedsa": Entry(
            fedsa,
            _keeps("order one nested padding splitting scaling absence"),
            asks_clients="each client keeps its own B",
        ),
        "fedsvd": Entry(
            fedsvd,
            _LINEAR - {"nested"},
            shared="A",
            one_rank=True,
            asks_clients="clients freeze A",
        ),
        "lora-fair": Entry(lora_fair, _keeps("order one padding splitting scaling absence")),
        "geometric-median": Entry(
            geometric_median, _keeps("order one consensus gauge padding splitting scaling absence outlier")
        ),
        "trimmed-mean": Entry(
            trimmed_mean, _keeps("order one consensus gauge padding splitting scaling absence outlier")
        ),
        "multi-krum": Entry(multi_krum, _keeps("order one consensus gauge padding scaling absence outlier")),
        "norm-clipping": Entry(
            norm_clipping, _keeps("order one consensus gauge padding splitting scaling absence outlier")
        ),
    }
)
