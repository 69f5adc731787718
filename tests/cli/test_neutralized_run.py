"""`fedsd neutralize` on a run folder: what is written, what is said, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedsd.cli.main import app
from fedsd.cli.neutralized_run import picture_errors, read_prompts
from fedsd.hybrid.neutral import load_neutral, lora_sha
from fedsd.store import DIFFUSERS_FILE, RunFolder

SHORT = ("--steps", "4", "--split", "0.5", "--epochs", "1", "--lambda-neu", "0")


@pytest.fixture
def run(small_run: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(small_run.path, tmp_path / "otter")
    return RunFolder(tmp_path / "otter")


def files_of(run: RunFolder) -> dict[str, bytes]:
    return {f.relative_to(run.path).as_posix(): f.read_bytes() for f in run.path.rglob("*") if f.is_file()}


def test_the_adapter_is_kept_where_servers_look_and_rounds_stay_as_they_are(run: RunFolder) -> None:
    before = files_of(run)
    done = CliRunner().invoke(app, ["neutralize", str(run.path), "--json", *SHORT], catch_exceptions=False)
    result, after = json.loads(done.stdout), files_of(run)
    new = {"neutral/r01.safetensors", f"loras/neutral/{DIFFUSERS_FILE}", "grids/neutral-r01.png"}
    assert after.keys() - before.keys() == new and {k: after[k] for k in before} == before
    found = load_neutral(run.path, 1)
    assert found.sha != lora_sha(run.load_adapter(1, "neutral"))
    assert result["loss_ratio"] == result["after"]["total"] / result["before"]["total"] < 1
    assert result["picture_error"].keys() == {"cluster-0", "cluster-1"}
    assert all(errors.keys() == {"base", "neutral", "neutralised"} for errors in result["picture_error"].values())
    with Image.open(result["grid"]) as sheet:
        assert "a picture of a cat" in sheet.text["parameters"] and "Server steps: 2" in sheet.text["parameters"]
    again = CliRunner().invoke(app, ["neutralize", str(run.path), *SHORT], catch_exceptions=False)
    assert load_neutral(run.path, 1).sha == found.sha  # it starts from the round's adapter, not from its own
    assert "L_mix" in again.stdout and "cluster-1" in again.stdout


def test_a_loss_that_did_not_fall_is_not_kept(run: RunFolder) -> None:
    before = files_of(run)
    with pytest.raises(ValueError, match=r"so nothing was written; lower --lr \(0\.3\)"):
        CliRunner().invoke(app, ["neutralize", str(run.path), *SHORT, "--lr", "0.3"], catch_exceptions=False)
    assert files_of(run) == before


def test_prompts_are_the_runs_template_or_a_file(tmp_path: Path) -> None:
    built_in = read_prompts(None, "{label}, drawn")
    assert built_in[0] == "cat, drawn" and len(set(built_in)) == 24
    (tmp_path / "p.txt").write_text("a boat\n\n  a cup \n")
    assert read_prompts(tmp_path / "p.txt", "") == ("a boat", "a cup")
    with pytest.raises(ValueError, match=r"the prompts file .*none\.txt cannot be read"):
        read_prompts(tmp_path / "none.txt", "")


def test_a_run_without_a_round_or_clusters_is_refused(run: RunFolder) -> None:
    state, loras = run.load_round(1)
    run.save_round({**state, "round": 2, "clusters": {}}, loras)
    with pytest.raises(ValueError, match="has no clusters, so there is nothing to be neutral between"):
        CliRunner().invoke(app, ["neutralize", str(run.path)], catch_exceptions=False)
    shutil.rmtree(run.path / "ckpt")
    with pytest.raises(ValueError, match="has no complete round yet"):
        CliRunner().invoke(app, ["neutralize", str(run.path)], catch_exceptions=False)


def test_errors_are_shares_of_the_range() -> None:
    alone = np.zeros((1, 2, 2, 3), np.uint8)
    made = {"cluster-0": {"alone": alone, "base": alone + 255, "neutral": alone + 51, "neutralised": alone}}
    assert picture_errors(made) == {"cluster-0": {"base": 1.0, "neutral": 0.2, "neutralised": 0.0}}
