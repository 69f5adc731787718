"""The methods in federated rounds on the real Flower engine, and what can be done with their runs afterwards.

All four take part in one run in the fast tier; a run of each alone is slow.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from fedsd.base import load
from fedsd.base.load import weights_sha
from fedsd.cli import main, sampling
from fedsd.data import drawn
from fedsd.store import PrivateFolder, RunFolder
from fedsd.strategies.round import arrays_of, from_state

CLIENTS = ("c0", "c1", "c2", "c3")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedsd(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command line; returns exit code, output and errors."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsd", *map(str, arguments)])
        try:
            main.run()
        except SystemExit as ended:
            return int(ended.code or 0), *capfd.readouterr()
        return 0, *capfd.readouterr()

    return call


def run_of(fedsd: Command, tmp_path: Path, method: str, *more: str) -> RunFolder:
    sets = [f"method.name={method}", f"node.private-dir={tmp_path / 'nodes'}", "lora.ranks=2,3,2,3", *more]
    settings = [part for text in sets for part in ("-s", text)]
    folder = tmp_path / "run"
    code, out, err = fedsd("run", "--preset", "smoke", "--clients", "4", "--folder", folder, "--no-report", *settings)
    assert code == 0, out + err
    return RunFolder.open(folder)


def kept(tmp_path: Path, client: str) -> tuple[dict[str, np.ndarray], dict]:
    found = PrivateFolder(tmp_path / "nodes", client).load("own")
    assert found is not None
    return found


@pytest.mark.slow
def test_spire_in_two_rounds_keeps_each_embedding_at_home(fedsd: Command, tmp_path: Path) -> None:
    run = run_of(fedsd, tmp_path, "spire")
    assert run.rounds() == [1, 2]
    state, loras = run.load_round(2)
    assert {tuple(c["members"]): c["rank"] for c in state["clusters"].values()} == {("c0", "c1"): 2, ("c2", "c3"): 2}
    assert all(factor.B.any() for factor in loras["mix"].values()) and run.load_arrays(2) == {}
    for client in CLIENTS:
        held, about = kept(tmp_path, client)
        assert about["round"] == 2 and held["before.v"].any() and held["after.v"].any()
        assert not np.array_equal(held["before.v"], held["after.v"])  # the second round went on from the first
    written = b"".join(file.read_bytes() for file in run.path.rglob("*") if file.is_file())
    assert all(kept(tmp_path, client)[0]["after.v"].tobytes() not in written for client in CLIENTS)

    # a newcomer: one vector is fitted, everything else stays
    base, before = load.load("tiny"), weights_sha(*_parts(load.load("tiny")))
    drawn.write(tmp_path / "new", ("cartoon",), 4, 5)
    arguments = ("--data", tmp_path / "new", "--private-dir", tmp_path / "nodes", "--client", "anna", "--steps", "3")
    code, out, err = fedsd("adapt", run.path, *arguments, "--json")
    assert code == 0, err
    result = json.loads(out.strip().splitlines()[-1])
    width = base.unet.time_embedding.linear_2.out_features
    assert result["trained"] == width and result["share"] == width / sum(p.numel() for p in base.unet.parameters())
    assert weights_sha(*_parts(base)) == before
    assert kept(tmp_path, "anna")[0]["after.v"].shape == (width,)
    picture = tmp_path / "anna.png"
    code, _, err = fedsd("generate", "a house", "--lora", result["model"], "--out", picture, "--steps", "2")
    assert code == 0 and picture.is_file(), err
    load.load.cache_clear()  # stock diffusers has put its adapter into the cached base
    code, _, err = fedsd("adapt", run.path, *arguments[:-4], "--client", "c1")
    assert code == 2 and "c1 is a client of this run" in err


@pytest.mark.slow
def test_soda_in_two_rounds_shares_shifts_and_turns(fedsd: Command, tmp_path: Path) -> None:
    run = run_of(fedsd, tmp_path, "soda", "lora.text-encoder=false")
    state, loras = run.load_round(2)
    arrays = run.load_arrays(2)
    assert set(arrays) == {"mix", "neutral", "fedavg", "cluster-0", "cluster-1"} and loras["mix"] == {}
    assert len(state["directions"]) == 64  # one decomposition on all nodes
    assert not (run.path / "loras" / "mix").exists()
    n = {key: entry["n"] for key, entry in state["clusters"].items()}
    mean = {name: (arrays["cluster-0"][name] + arrays["cluster-1"][name]) / 2 for name in arrays["mix"]}
    assert set(n) == {"0", "1"} and all(values.any() for name, values in mean.items() if name.endswith(".shift"))
    for name, values in mean.items():
        np.testing.assert_allclose(arrays["neutral"][name], values, atol=1e-7)
    again = from_state(state, loras, arrays)
    assert arrays_of(again).keys() == arrays.keys() and again.directions == state["directions"]

    # the run resumes from what it left
    code, out, err = fedsd(
        "run", "--preset", "smoke", "--clients", "4", "--folder", run.path, "--no-report", "--resume", "--rounds", "3",
        "-s", "method.name=soda", "-s", f"node.private-dir={tmp_path / 'nodes'}", "-s", "lora.text-encoder=false",
    )  # fmt: skip
    assert code == 0, out + err
    assert run.rounds() == [1, 2, 3]
    finished = sampling.finished(run.path)
    base = load.load("tiny")
    with sampling.carried(finished, base, finished.shared("cluster-0")) as paint:
        here = paint(["a house"], steps=2)
        turned = base.unet.down_blocks[-1].attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    code, out, err = fedsd("export", run.path, "--to", "diffusers", "--adapter", "cluster-0", "--json")
    assert code == 0, err
    (folder,) = json.loads(out.strip().splitlines()[-1])["files"]
    stock = StableDiffusionPipeline.from_pretrained(folder)
    exported = stock.unet.down_blocks[-1].attentions[0].transformer_blocks[0].attn1.to_q.weight
    np.testing.assert_array_equal(exported.detach().numpy(), turned.detach().numpy())
    again = sampling.SMALL_ADAPTED.on(load.load(folder))
    np.testing.assert_array_equal(sampling.pictures(again, ["a house"], steps=2), here)
    for command in (("export", run.path, "--to", "comfyui"), ("neutralize", run.path), ("serve", run.path)):
        code, _, err = fedsd(*command)
        assert code == 2 and "works on LoRA factors" in err, command
    code, _, err = fedsd("adapt", run.path, "--data", tmp_path)
    assert code == 2 and 'only "spire" has client embeddings' in err


@pytest.mark.slow
def test_whole_backbones_are_averaged_weight_by_weight(fedsd: Command, tmp_path: Path) -> None:
    run = run_of(fedsd, tmp_path, "spire", "spire.backbone=full", "spire.form=projected", "train.lr=1e-4")
    arrays = run.load_arrays(2)
    base = load.load("tiny")
    weights = {f"unet.{name}" for name, _ in base.unet.named_parameters()} - {"unet.time_embedding.linear_2.bias"}
    assert set(arrays["mix"]) == weights | {"embedding.W1", "embedding.W2"}
    assert kept(tmp_path, "c0")[0]["after.e"].shape == (64,)


@pytest.mark.slow
def test_a_word_in_two_rounds_travels_as_scalars(fedsd: Command, tmp_path: Path) -> None:
    run = run_of(fedsd, tmp_path, "zo-token", "zo.estimator=rge", "zo.directions=2", "train.steps=3")
    done = {(e["round"], e["client"]): e["bytes"] for e in run.events() if e["event"] == "client.done"}
    width = load.load("tiny").text_encoder.config.hidden_size
    for client in CLIENTS:
        # the first reply brings the word, the second 3 x 2 scalars in its place
        assert done[1, client] - done[2, client] >= 4 * width
        held, about = kept(tmp_path, client)
        assert about["round"] == 2 and held["after.steps"][0] == 6 and held["before.steps"][0] == 3
    arrays = run.load_arrays(2)
    assert arrays["mix"]["token"].shape == (1, width)
    assert {name for name in arrays if "/" in name} == {f"optimisers/{client}" for client in CLIENTS}
    for client in CLIENTS:  # the server has followed each client's moments bit for bit
        for key in ("m", "v", "steps"):
            np.testing.assert_array_equal(
                arrays[f"optimisers/{client}"][key], kept(tmp_path, client)[0][f"after.{key}"]
            )
    finished = sampling.finished(run.path)
    with sampling.carried(finished, load.load("tiny"), finished.shared("mix")) as paint:
        assert paint(["a house"], steps=1).shape[0] == 1
    code, out, err = fedsd("export", run.path, "--to", "diffusers", "--adapter", "mix", "--json")
    assert code == 0, err
    (file,) = json.loads(out.strip().splitlines()[-1])["files"]
    stock = load.load("tiny").pipeline()
    stock.load_textual_inversion(file)
    learnt = stock.text_encoder.get_input_embeddings().weight[-1].detach().numpy()
    load.load.cache_clear()
    np.testing.assert_array_equal(learnt, arrays["mix"]["token"][0])


def test_four_methods_in_one_run_give_each_node_what_it_can_use(fedsd: Command, tmp_path: Path) -> None:
    of_clients = "method.of-clients=c1=spire,c2=soda,c3=zo-token"
    run = run_of(fedsd, tmp_path, "lora", of_clients, "lora.text-encoder=false", "zo.directions=1", "train.steps=1")
    assert run.rounds() == [1, 2]
    told = {e["client"]: e["method"] for e in run.events() if e["event"] == "client.profile"}
    assert told == {"c0": "lora", "c1": "spire", "c2": "soda", "c3": "zo-token"}
    assert not [e for e in run.events() if e["event"] == "client.failed"]
    state, loras = run.load_round(2)
    arrays = run.load_arrays(2)
    by_members = {tuple(entry["members"]): f"cluster-{key}" for key, entry in state["clusters"].items()}
    factors, others = by_members["c0", "c1"], by_members["c2", "c3"]
    assert loras[factors] and all(factor.B.any() for factor in loras[factors].values()) and factors not in arrays
    assert loras[others] == {} and "token" in arrays[others] and len(arrays[others]) > 1
    assert {name for name in loras if "/" in name} == {"clients/c0", "clients/c1"}
    assert kept(tmp_path, "c1")[0]["after.v"].any() and kept(tmp_path, "c3")[0]["after.steps"][0] == 2
    finished, base = sampling.finished(run.path), load.load("tiny")
    for name in by_members.values():
        with sampling.carried(finished, base, finished.shared(name)) as paint:
            assert paint(["a house"], steps=1).shape[0] == 1
    assert "token" not in finished.shared(others).arrays and finished.shared("mix").arrays == {}
    code, said, err = fedsd("evaluate", run.path, "--pictures", "4", "--methods", "flora,cluster,mix", "--json")
    assert code == 0, err
    assert json.loads(said)["scores"].keys() == {"flora", "cluster", "mix"}


def _parts(base: load.Base) -> tuple:
    return base.unet, base.text_encoder, base.vae
