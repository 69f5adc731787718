"""The example app: two strategies in one process, and the whole of it on Flower's simulation engine."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from local_grid import SERVER, LocalGrid, context
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from fedsd.cli.run import environment, free_port, superlink
from fedsd.lowrank import dense
from fedsd.strategies.peft_state import from_peft, is_lora

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "text-classification"
ROUNDS, NODES, CHANCE = 4, 3, 0.25

# The server of the example, which also keeps what the clients sent and what the strategy made of it.
RECORDER = """
import os

import numpy as np

from fedsd.strategies import LoRAStrategy
from text_classification.server_app import app

__all__ = ["app"]
plain = LoRAStrategy.aggregate_train


def recorded(self, server_round, replies):
    replies = list(replies)
    arrays, metrics = plain(self, server_round, replies)
    kept = {f"result/{key}": array.numpy() for key, array in arrays.items()}
    for index, reply in enumerate(replies):
        kept[f"n/{index}"] = np.array(reply.content["metrics"]["num-examples"])
        kept |= {f"{index}/{key}": array.numpy() for key, array in reply.content["arrays"].items()}
    np.savez(os.path.join(os.environ["KEPT"], f"round-{server_round}.npz"), **kept)
    return arrays, metrics


LoRAStrategy.aggregate_train = recorded
"""


@dataclass(frozen=True)
class Ended:
    status: str
    log: str
    folder: Path

    def kept(self, server_round: int) -> Mapping[str, np.ndarray]:
        with np.load(self.folder / f"round-{server_round}.npz") as found:
            return dict(found)


@pytest.fixture(scope="module")
def example():
    """The example's own modules."""
    sys.path.insert(0, str(EXAMPLE))
    from text_classification import client_app, task

    yield task, client_app
    sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The example after a run of its own length on a SuperLink and Ray."""
    folder = tmp_path_factory.mktemp("example")
    app = folder / "app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "recorder.py").write_text(RECORDER)
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace("text_classification.server_app:app", "recorder:app"))
    env = environment(folder / "flower", 1) | {"KEPT": str(folder)}
    federation = f"num-supernodes={NODES} client-resources-num-cpus=1 init-args-num-cpus=2"
    settings = f'out="{folder / "adapter.safetensors"}" num-server-rounds={ROUNDS}'
    with superlink(app, env, free_port(), folder / "superlink.log") as connection:
        run = ["flwr", "run", ".", connection, "--stream", "--federation-config", federation, "--run-config", settings]
        done = subprocess.run(run, cwd=app, env=env, capture_output=True, text=True)
        listed = subprocess.run(
            ["flwr", "list", connection, "--format", "json"], cwd=app, env=env, capture_output=True, text=True
        )
    return Ended(json.loads(listed.stdout)["runs"][0]["status"], done.stdout + done.stderr, folder)


def test_the_run_completes_and_no_reply_is_dropped(ended):
    assert ended.status == "finished:completed", ended.log[-3000:]
    assert "dropped" not in ended.log


def test_the_adapter_has_learnt_what_no_single_node_could_see(ended, example):
    task, _ = example
    ids, labels = task.sentences(1000, seed=12345)
    state, model = load_file(ended.folder / "adapter.safetensors"), task.build_model(task.RANK)
    set_peft_model_state_dict(model, state)
    assert task.accuracy(model, ids, labels) > 2.4 * CHANCE
    # and it is the adapter that has learnt it, not the head alone
    set_peft_model_state_dict(model, {key: value * (".lora_B" not in key) for key, value in state.items()})
    assert task.accuracy(model, ids, labels) < 1.6 * CHANCE


@pytest.mark.parametrize("server_round", range(1, ROUNDS + 1))
def test_the_result_of_a_round_is_the_exact_mean_of_products(ended, example, server_round):
    task, _ = example
    kept = ended.kept(server_round)
    replies = [part(kept, f"{index}/") for index in range(NODES)]
    n = np.array([kept[f"n/{index}"] for index in range(NODES)], np.float64)
    weights, ranks = n / n.sum(), [rank_of(reply) for reply in replies]
    assert sorted(ranks) == [2, 4, 8]
    loras = [products(reply, task.lora_config(rank)) for reply, rank in zip(replies, ranks, strict=True)]
    result = products(part(kept, "result/"), task.lora_config(task.RANK))
    assert len(result) == 8
    for layer, found in result.items():
        exact = sum(w * lora[layer] for w, lora in zip(weights, loras, strict=True))
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())
    head = "base_model.model.classifier.weight"
    mean = sum(w * reply[head] for w, reply in zip(weights, replies, strict=True))
    np.testing.assert_allclose(kept[f"result/{head}"], mean, rtol=1e-5, atol=1e-6)


def part(kept, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in kept.items() if key.startswith(prefix)}


def rank_of(state) -> int:
    (rank,) = {len(array) for key, array in state.items() if ".lora_A" in key}
    return rank


def products(state, config) -> dict[str, np.ndarray]:
    factors = from_peft({k: a.astype(np.float64) for k, a in state.items() if is_lora(k)}, config.to_dict())
    return {layer: dense(factor) for layer, factor in factors.items()}


# --- the one line


def diff_of_the_readme() -> tuple[list[str], list[str]]:
    block = re.search(r"```diff\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert block is not None
    lines = block[1].splitlines()
    return [line[1:] for line in lines if line[:1] == "-"], [line[1:] for line in lines if line[:1] == "+"]


def run_server(example, source: str, ranks: str) -> LocalGrid:
    """Run a server's source against the example's clients, in this process, for two short rounds."""
    _, client_app = example
    config = {"ranks": ranks, "num-server-rounds": 2, "local-steps": 1, "learning-rate": 0.01, "out": ""}
    nodes = {100 + i: context(100 + i, **{"partition-id": i}) for i in range(NODES)}
    for node in nodes.values():
        node.run_config = config
    grid, module = LocalGrid(client_app.app, nodes), {}
    exec(compile(source, "server_app.py", "exec"), module)
    server = Context(run_id=SERVER, node_id=SERVER, node_config={}, state=RecordDict(), run_config=config)
    module["app"](grid, server)
    return grid


def replies_of_rank(grid: LocalGrid, rank: int) -> int:
    return sum(
        message.content["arrays"]["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"].shape[0]
        == rank
        for message in grid.asked
        if message.metadata.message_type == "train"
    )


def test_only_the_line_that_the_readme_names_stands_between_fedavg_and_ours(example, caplog):
    ours = (EXAMPLE / "text_classification" / "server_app.py").read_text()
    before, after = diff_of_the_readme()
    stock = ours
    for old, new in zip(before, after, strict=True):
        assert stock.count(f"{new}\n") == 1, new
        stock = stock.replace(new, old)
    assert "fedsd" not in stock
    assert replies_of_rank(run_server(example, stock, "16"), 16) == 2 * NODES
    assert replies_of_rank(run_server(example, ours, "16"), 16) == 2 * NODES
    assert replies_of_rank(run_server(example, ours, "2,4,8"), 4) == 2
    caplog.clear()
    run_server(example, stock, "2,4,8")
    assert any("size mismatch" in message for message in caplog.messages)
    assert "aggregate_train: Received 0 results and 3 failures" in caplog.messages
