import json
from pathlib import Path

import pytest

from fedsd.cli.report.outcome import Scores, read_outcome
from fedsd.store import RunFolder


def test_everything_in_the_folder_is_read(finished: RunFolder) -> None:
    run = read_outcome(finished.path)
    assert (run.name, run.base, run.history.status) == ("otter", "tiny", "done")
    assert run.settings["lora.ranks"] == "4,8,16" and run.env["device"] == "cpu (2)"
    assert run.state and run.state["round"] == 2
    assert list(run.grids) == [1, 2]
    assert run.loras == ["cluster-0", "cluster-1", "cluster-2", "mix", "neutral"]
    assert run.metrics[0] == ["round", "loss", "clusters"] and len(run.metrics) == 3
    assert run.scores and run.scores.styles == ["cartoon", "pixel", "sketch"]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new")
    folder.write("run.toml", '[base]\nname = "/models/sd15"\n')
    run = read_outcome(folder.path)
    assert (run.name, run.base, run.history.status, run.state, run.scores) == (
        "new",
        "/models/sd15",
        "waiting",
        None,
        None,
    )
    assert run.grids == {} and run.plots == {} and run.loras == [] and run.metrics == []


def test_plots_come_in_order_and_unknown_ones_last(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new")
    folder.write("run.toml", "")
    for name in ("traffic", "hybrid", "clusters", "energy"):
        folder.write(f"plots/{name}.png", "")
    assert list(read_outcome(folder.path).plots) == ["energy", "clusters", "traffic", "hybrid"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither run\.toml nor events\.jsonl, so it is no run folder"):
        read_outcome(tmp_path)
    folder = RunFolder.create(tmp_path / "new")
    folder.write("run.toml", "[base\n")
    with pytest.raises(ValueError, match=r"run\.toml cannot be read"):
        read_outcome(folder.path)
    folder.write("run.toml", "")
    for text, message in (
        ("{", r"evaluation\.json cannot be read: .*; delete it or make it again"),
        ("[]", r"evaluation\.json must hold a JSON object, not a list"),
        ('{"base": {}}', r'evaluation\.json holds no "scores"; make it again with `fedsd evaluate`'),
    ):
        folder.write("evaluation.json", text)
        with pytest.raises(ValueError, match=message):
            read_outcome(folder.path)


def scores(**cells: dict[str, float]) -> Scores:
    """One number for each method and style, taken as KID and as CLIP score."""
    return Scores("embedded", {
        method: {style: {"kid": value, "clip_score": value} for style, value in found.items()}
        for method, found in cells.items()
    })  # fmt: skip


def test_methods_are_in_the_papers_order_and_others_last() -> None:
    found = scores(other={}, mix={}, cluster={}, base={}, local={}, fedavg={})
    assert found.methods == ["base", "local", "fedavg", "cluster", "mix", "other"]


def test_means_leave_out_methods_that_lack_a_style() -> None:
    found = scores(base={"a": 1.0, "b": 3.0}, cluster={"a": 0.0, "b": 1.0}, local={"a": 0.5})
    assert found.styles == ["a", "b"]
    assert found.column("kid", "b") == {"base": 3.0, "cluster": 1.0}
    assert found.mean("kid") == {"base": 2.0, "cluster": 0.5}


def test_the_best_is_the_lowest_distance_and_the_highest_clip_score() -> None:
    column = {"base": 1.0, "cluster": 0.5, "mix": 0.5}
    assert scores().best("kid", column) == scores().best("fid", column) == {"cluster", "mix"}
    assert scores().best("clip_score", column) == {"base"}
    assert scores().best("kid", {}) == set()


def test_evaluation_without_numbers_for_a_method_is_read(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new")
    folder.write("run.toml", "")
    folder.write("evaluation.json", json.dumps({"scores": {"base": {"a": {"kid": 0.1}}, "mix": {}}}))
    found = read_outcome(folder.path).scores
    assert found and found.extractor == "unknown" and found.mean("kid") == {"base": 0.1}
