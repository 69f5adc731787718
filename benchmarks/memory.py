"""Measure the server's peak memory with 10, 100 and 1,000 clients of Stable Diffusion 1.5 at rank 16 (17.5 MB each).

    python benchmarks/memory.py

Each case is a process of its own, which runs one round of the strategy on a grid whose nodes make up their update when
it is asked for, so that no more than one reply is on its way. Flower's FedAvg gets the same updates from a list of
replies, as its round loop hands them over. Half of an update's columns are those of its style, as clients of one style
have something in common; the other half are random and shared with nobody.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import numpy as np
import points
import sd15
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsd.lowrank import Factor, LoRA
from fedsd.strategies import Schedule, Settings, StyleClusteredLoRA
from fedsd.wire import PROFILE_QUERY, Profile, Update, lora_record, parse_order, profile_reply, update_reply

RANK, CAP, STYLES = 16, 128, 2
TEMPLATE = sd15.adapter(RANK, 0)


def update_of(index: int) -> LoRA:
    """Return client `index`'s adapter: its style's columns, and its own by turning random ones round."""
    half, style = RANK // 2, index % STYLES
    lora = {}
    for layer, factor in TEMPLATE.items():
        B, A = np.roll(factor.B, index, axis=0), np.roll(factor.A, 7 * index, axis=1)
        B[:, :half], A[:half] = np.roll(factor.B, style, axis=0)[:, :half], np.roll(factor.A, style, axis=1)[:half]
        lora[layer] = Factor(B, A)
    return lora


class Fleet(Grid):
    """Nodes 1 … N, whose replies come into being when they are pulled."""

    def __init__(self, clients: int) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.clients = clients
        self._asked: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return range(2, self.clients + 2)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take orders; of each only the round, the rank and the seed are needed."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            if "lora" in message.content:
                message.content["lora"] = ArrayRecord()
            self._asked[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages."""
        return [self._reply(self._asked.pop(message_id)) for message_id in message_ids]

    def _reply(self, message: Message) -> Message:
        index = message.metadata.dst_node_id - 2
        z = np.eye(512, dtype=np.float32)[index % STYLES]
        if message.metadata.message_type == PROFILE_QUERY:
            return profile_reply(Profile(f"c{index}", z, 50, RANK, "abc123"), message)
        order = parse_order(message)
        return update_reply(
            Update(f"c{index}", update_of(index), z, 50, order.rank, "abc123", 1.0, 0.5, 1.0, 50.0), message
        )

    # what a Grid must have besides, and the strategy does not use

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """Return no run."""
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Refuse: messages are made by their constructor."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, and return all replies together."""
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]


def fedsd_round(clients: int, cap: int) -> dict[str, float]:
    """Run one round of our strategy; cap 0 holds the replies, as rules that compare clients need."""
    told: list[dict[str, Any]] = []
    strategy = StyleClusteredLoRA(
        Settings(method="k-means" if clients < 50 else "agglomerative", rank_cap=RANK),
        schedule=Schedule(poll=0.001, stack_cap=cap),
        on_event=told.append,
    )
    strategy.start(Fleet(clients), ArrayRecord(), num_rounds=1)
    (found,) = [event for event in told if event["event"] == "round.clusters"]
    return {"error_bound": max(found.get("error_bound", {"": 0.0}).values()), "clusters": len(found["clusters"])}


def flower_round(clients: int) -> dict[str, float]:
    """Aggregate the same updates by Flower's FedAvg."""
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    replies = []
    for index in range(clients):
        order = Message(RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()}), index + 2, "train")
        content = {"arrays": lora_record(update_of(index)), "metrics": MetricRecord({"num-examples": 50})}
        replies.append(Message(RecordDict(content), reply_to=order))
    FedAvg().aggregate_train(1, replies)
    return {}


def peak(case: str, clients: int) -> dict[str, float]:
    """Run a case in a process of its own: peak resident MiB, seconds, and what it says."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", case, "--clients", str(clients)]
    began = time.monotonic()
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - began}


CASES = {
    "streamed": lambda clients: fedsd_round(clients, CAP),
    "held": lambda clients: fedsd_round(clients, 0),
    "Flower's FedAvg": flower_round,
}


def main() -> None:
    """Run every case, print a table, keep the point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--clients", type=int, default=10)
    opts = parser.parse_args()
    if opts.case:
        said = CASES[opts.case](opts.clients)
        print(json.dumps(said | {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    began, streamed = time.monotonic(), {}
    print("| | clients | peak MiB | seconds | bound on the error / norm |\n|---|---|---|---|---|")
    for case, counts in (("streamed", (10, 100, 1000)), ("held", (10,)), ("Flower's FedAvg", (10, 100))):
        for clients in counts:
            found = peak(case, clients)
            if case == "streamed":
                streamed[clients] = found["mib"]
            bound = f"{found['error_bound']:.3f}" if case == "streamed" else ""
            print(f"| {case} | {clients} | {found['mib']:.0f} | {found['seconds']:.0f} | {bound} |", flush=True)
    points.record(
        "agg.memory_1000_over_10", streamed[1000] / streamed[10], "<= 1.2", command="python benchmarks/memory.py",
        seconds=time.monotonic() - began,
    )  # fmt: skip


if __name__ == "__main__":
    main()
