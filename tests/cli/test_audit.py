"""The audit of a run that a server made of real messages from real client apps, on a small base."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from local_grid import LocalGrid, context
from models import tiny_base
from typer.testing import CliRunner

from fedsd import client_app, config, server_app
from fedsd.base import load
from fedsd.cli import attacker
from fedsd.cli.audit import audit
from fedsd.cli.main import app
from fedsd.data import drawn
from fedsd.privacy import key
from fedsd.strategies.recorded import Recorded, received_updates


def recorded_run(folder: Path, base: Path, **changes: Any) -> Path:
    flat = config.defaults() | {
        "base.name": str(base), "data.styles": "sketch,pixel", "data.per-style": 6, "data.objects": "house,cat",
        "node.private-dir": str(folder.parent / "nodes"), "run.folder": str(folder), "run.rounds": 1,
        "run.min-nodes": 4, "train.steps": 1, "train.batch-size": 2, "lora.ranks": "2", "run.record": True,
    } | changes  # fmt: skip
    contexts = {}
    for number in range(4):
        contexts[number + 2] = context(number + 2, **{"partition-id": number, "num-partitions": 4})
        contexts[number + 2].run_config = flat
    grid, typed = LocalGrid(client_app.app, contexts), config.from_run_config(flat)
    opened = server_app.open_folder(typed, flat)
    server_app.strategy_of(typed, opened)._run(Recorded(grid, opened), ArrayRecord(), 1, 60.0, None, None)
    return folder


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "base"
    tiny_base().pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audited(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    load.load.cache_clear()
    folder = recorded_run(tmp_path_factory.mktemp("runs") / "run", base_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacker, "PER_STYLE", 4)
        result = audit(folder, shadows=1, keys=30)
    load.load.cache_clear()
    return folder, result


def rows(result: Mapping[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


def test_z_tells_the_style_unless_a_key_hides_it(audited: tuple[Path, dict[str, Any]]) -> None:
    _, result = audited
    (plain,) = rows(result, attack="A4 pictures", defence="none")
    (keyed,) = rows(result, attack="A4 pictures", defence="turned by a key")
    (raw,) = rows(result, attack="A4 pictures", defence="as received")
    assert plain["accuracy"] == 1.0 and plain["chance"] == 0.5 and not plain["shipped"]
    assert keyed["accuracy"] == pytest.approx(0.5, abs=0.25) and keyed["shipped"]
    assert raw["accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert plain["clusters"] == pytest.approx(keyed["clusters"]) == pytest.approx(raw["clusters"])


def test_the_same_devices_are_linked_by_z_unless_federations_have_keys_of_their_own(
    audited: tuple[Path, dict[str, Any]],
) -> None:
    _, result = audited
    (plain,) = rows(result, attack="A5 cosine", defence="none")
    (keyed,) = rows(result, attack="A5 cosine", defence="turned by a key")
    assert plain["accuracy"] == 1.0 and keyed["accuracy"] == pytest.approx(0.25, abs=0.2)


def test_the_received_bytes_are_what_is_attacked(audited: tuple[Path, dict[str, Any]]) -> None:
    """The z that were received are the plain ones turned by the devices' key, and the audit finds the plain ones."""
    folder, _ = audited
    secret = key.read_key(folder.parent / "nodes" / key.FILE)
    for update in received_updates(folder)[1].values():
        kept = next((folder.parent / "nodes" / update.client).glob("prepared-*.safetensors")).read_bytes()
        assert update.z.tobytes() not in kept
        assert np.abs(np.frombuffer(kept[-4 * 96 :], np.float32) - key.turn_back(update.z, secret)).max() < 1e-5


def test_the_requests_tell_by_the_style_word_and_not_without_it(audited: tuple[Path, dict[str, Any]]) -> None:
    _, result = audited
    found = {row["defence"]: row["accuracy"] for row in rows(result, seen="request")}
    assert found == {"none: the style's word": 1.0, "renamed, vector kept": 0.5, "generic prompt": 0.5}
    assert [row["defence"] for row in rows(result, seen="request", shipped=True)] == ["generic prompt"]


def test_every_attack_is_there_and_the_worst_is_the_largest_of_what_is_sent(
    audited: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = audited
    assert {row["attack"][:2] for row in result["rows"]} == {"A1", "A2", "A3", "A4", "A5", "A6"}
    assert {row["seen"] for row in result["rows"]} == {"z", "adapter", "metrics", "token", "request"}
    sent = [row["accuracy"] - row["chance"] for row in rows(result, shipped=True, style=True)]
    assert result["worst"]["over_chance"] == max(sent)
    assert json.loads((folder / "audit" / "tokens.json").read_text()) == json.loads(json.dumps(result))
    shown = (folder / "audit" / "tokens.md").read_text()
    assert shown.count("\n| T") + shown.count("\n| I") == len(result["rows"]) and "Worst for the style" in shown


def test_a_private_word_is_kept_by_its_node_and_never_sent(audited: tuple[Path, dict[str, Any]]) -> None:
    from fedsd.privacy.words import registered_below

    folder, _ = audited
    assert (folder.parent / "nodes" / "c0" / "private-token.safetensors").is_file()
    assert registered_below(folder.parent / "nodes") == ("<user-s>",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run.record": False}, "none of the bytes"),
        ({"data.styles": "sketch", "data.per-style": 12}, "all clients of"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    base_folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    load.load.cache_clear()
    folder = recorded_run(tmp_path / "run", base_folder, **changes)
    if not changes.get("run.record", True):
        for file in (folder / "received").iterdir():
            file.unlink()
    done = CliRunner().invoke(app, ["audit", "tokens", str(folder)])
    load.load.cache_clear()
    assert isinstance(done.exception, ValueError) and said in str(done.exception)


def test_pictures_of_a_folder_need_a_bank(tmp_path: Path) -> None:
    typed = config.from_run_config(config.defaults() | {"data.root": "/pictures"})
    with pytest.raises(ValueError, match=r"needs public pictures of the run's styles; give a folder .*--bank"):
        attacker.public_pictures(typed, ["sketch"], None, tmp_path)


def test_a_bank_that_lacks_a_style_is_named(tmp_path: Path) -> None:
    typed = config.from_run_config(config.defaults())
    drawn.write(tmp_path, ("sketch",), 2, 0)
    with pytest.raises(ValueError, match="ink"):
        attacker.public_pictures(typed, ["ink"], tmp_path, tmp_path)
