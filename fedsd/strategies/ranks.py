"""At which rank each node of another app trains its adapter, asked of the node itself.

    query "lora"    an empty message
    its answer      one MetricRecord: rank and, where it is not that of the PEFT config, lora-alpha

A node that is not asked is taken to have the ranks of the PEFT config.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsd.strategies.exchange import exchange
from fedsd.wire import MAX_RANK

LORA_QUERY = f"{MessageType.QUERY}.lora"
PATIENCE = 600.0  # seconds that nodes have to answer
POLL = 0.2

Configs = dict[int, dict[str, Any]]


def ask_configs(grid: Grid, nodes: Iterable[int], config: Mapping[str, Any]) -> tuple[Configs, dict[int, str]]:
    """The PEFT config of each node, by its id, and the reason for each node that gave none."""
    configs: Configs = {}
    reasons: dict[int, str] = {}
    queries = (Message(RecordDict(), node, LORA_QUERY) for node in nodes)
    for found in exchange(grid, queries, PATIENCE, POLL):
        if found.reply is None:
            reasons[found.node_id] = f'it did not answer @app.query("lora"): {found.problem}'
            continue
        try:
            configs[found.node_id] = dict(config) | parse_rank(found.reply)
        except ValueError as error:
            reasons[found.node_id] = f'its answer to @app.query("lora") is not valid: {error}'
    return configs, reasons


def parse_rank(reply: Message) -> dict[str, Any]:
    """The entries r and, if given, lora_alpha, in an answer; ValueError naming what is missing or out of range."""
    records = list(reply.content.metric_records.values())
    if len(records) != 1 or "rank" not in records[0]:
        raise ValueError("it must hold one MetricRecord with rank, such as {'rank': 8}")
    rank, alpha = records[0]["rank"], records[0].get("lora-alpha")
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"rank must be a whole number from 1 to {MAX_RANK}, got {rank}")
    if alpha is None:
        return {"r": rank}
    if isinstance(alpha, list) or not 0 < alpha < np.inf:
        raise ValueError(f"lora-alpha must be a positive number, got {alpha}")
    return {"r": rank, "lora_alpha": alpha}
