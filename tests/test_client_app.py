"""The node's side over real messages: every reply here has travelled as bytes, and those bytes are read."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from local_grid import LocalGrid, context
from models import random_lora, tiny_base
from PIL import Image

from fedsd import client_app, config, wire
from fedsd.base import adapters, load
from fedsd.base.denoise import encode_pixels
from fedsd.base.training import Descent
from fedsd.data.images import pixels
from fedsd.methods import lora
from fedsd.privacy import key as federation
from fedsd.privacy.style import prompt_embedding, style_embedding
from fedsd.seeded import rule_of
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.replayed import replayed, with_moments

STYLES = {"gouachework": (200, 60, 40), "quillwork": (30, 60, 220)}
SECRETS = ("gouachework", "quillwork", "zebrafinch", "dandelion", "portrait", "holiday")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "base"
    tiny_base().pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two styles with six pictures each; names, captions and folders are words that occur nowhere else."""
    root = tmp_path_factory.mktemp("pictures") / "holiday"
    rng = np.random.default_rng(0)
    for style, colour in STYLES.items():
        (root / style).mkdir(parents=True)
        for i in range(6):
            noise = np.clip(rng.normal(colour, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / style / f"portrait{i}.png")
            (root / style / f"portrait{i}.txt").write_text(f"a {('zebrafinch', 'dandelion')[i % 2]} number {i}")
    return root


@pytest.fixture
def run_config(base_folder: Path, pictures: Path, tmp_path: Path) -> Iterator[dict]:
    load.load.cache_clear()
    yield config.defaults() | {
        "base.name": str(base_folder), "data.root": str(pictures), "node.private-dir": str(tmp_path / "nodes"),
        "train.steps": 2, "train.batch-size": 4, "lora.ranks": "2,3", "style.key": "none",
    }  # fmt: skip
    load.load.cache_clear()


def at(run_config: dict, **node_config: str | int) -> Context:
    found = context(7, **node_config)
    found.run_config = run_config
    return found


def simulated(run_config: dict, number: int = 1, clients: int = 4) -> Context:
    return at(run_config, **{"partition-id": number, "num-partitions": clients})


def deployed(run_config: dict, pictures: Path, tmp_path: Path, **more: str | int) -> Context:
    own = {"name": "anna", "data-root": str(pictures / "quillwork"), "private-dir": str(tmp_path / "own")}
    return at(run_config, **(own | more))


def ask(node: Context, message: Message) -> tuple[Message, LocalGrid]:
    grid = LocalGrid(client_app.app, {7: node})
    grid.push_messages([message])
    (reply,) = grid.pull_messages([message.metadata.message_id])
    return reply, grid


def query(node: Context) -> tuple[Message, LocalGrid]:
    LocalGrid(client_app.app, {7: node})  # gives this process the identity that a message needs
    return ask(node, wire.profile_query(7))


def order(node: Context, **changes: object) -> tuple[Message, LocalGrid]:
    fields: dict = {"server_round": 1, "rank": 3, "cluster": -1, "seed": 11, "lora": {}} | changes
    LocalGrid(client_app.app, {7: node})
    return ask(node, wire.order_message(wire.Order(**fields), 7))


def test_simulated_node_is_a_share_of_the_folder(run_config: dict, tmp_path: Path) -> None:
    typed = config.from_run_config(run_config)
    nodes = [client_app.identify(simulated(run_config, number), typed) for number in range(4)]
    assert [node.client for node in nodes] == ["c0", "c1", "c2", "c3"]
    assert [node.place.rank for node in nodes] == [2, 3, 2, 3]
    assert nodes[1].private.path == (tmp_path / "nodes" / "c1").resolve()
    shown = [example.path for node in nodes for example in node.examples]
    assert len(shown) == len(set(shown)) == 12
    assert all(len({example.style for example in node.examples}) == 1 for node in nodes)


def test_deployed_node_has_its_own_name_folder_and_rank(run_config: dict, pictures: Path, tmp_path: Path) -> None:
    typed = config.from_run_config(run_config)
    node = client_app.identify(deployed(run_config, pictures, tmp_path, rank=5), typed)
    assert (node.client, node.place.rank, node.private.path) == ("anna", 5, (tmp_path / "own" / "anna").resolve())
    assert {example.path.parent.name for example in node.examples} == {"quillwork"} and len(node.examples) == 6
    assert client_app.identify(deployed(run_config, pictures, tmp_path), typed).place.rank == 2


@pytest.mark.parametrize(
    ("own", "lacking"),
    [
        ({}, "name, data-root, private-dir"),
        ({"name": "anna"}, "data-root, private-dir"),
        ({"data-root": "/pictures", "partition-id": 0}, "name, private-dir"),
    ],
)
def test_node_config_that_lacks_keys_is_told_which(run_config: dict, own: dict, lacking: str) -> None:
    said = f"the node config lacks {lacking}; pass --node-config"
    with pytest.raises(ValueError, match=said):
        client_app.identify(at(run_config, **own), config.from_run_config(run_config))
    reply, _ = query(at(run_config, **own))
    assert said in reply.error.reason


def test_private_root_is_in_the_home_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert client_app.private_root("") == Path("/home/anna/.fedsd/nodes")
    assert client_app.private_root("~/kept") == Path("/home/anna/kept")


def test_profile_says_who_and_what_style(run_config: dict, base_folder: Path) -> None:
    node = simulated(run_config)
    reply, _ = query(node)
    found = wire.parse_profile(reply)
    assert (found.client, found.n, found.rank, found.base_sha) == ("c1", 3, 3, tiny_base().sha)
    examples = client_app.identify(node, config.from_run_config(run_config)).examples
    np.testing.assert_allclose(found.z, style_embedding(load.load_clip(), pixels(examples, 16)), atol=1e-6)


def test_style_of_prompts(run_config: dict) -> None:
    node = simulated(run_config | {"style.source": "prompts"})
    examples = client_app.identify(node, config.from_run_config(run_config)).examples
    wanted = prompt_embedding(load.load_clip(), [example.caption for example in examples])
    np.testing.assert_allclose(wire.parse_profile(query(node)[0]).z, wanted, atol=1e-6)


def test_training_starts_fresh_or_from_the_order(run_config: dict) -> None:
    node, base = simulated(run_config), tiny_base()
    fresh = wire.parse_update(order(node)[0])
    assert (fresh.client, fresh.rank, fresh.n, fresh.base_sha) == ("c1", 3, 3, base.sha)
    assert fresh.lora.keys() == adapters.target_shapes(base).keys()
    assert all(factor.rank == 3 for factor in fresh.lora.values())
    np.testing.assert_array_equal(fresh.z, wire.parse_profile(query(node)[0]).z)
    assert np.isfinite([fresh.loss_first, fresh.loss_last]).all() and fresh.images_per_second > 0
    assert fresh.bytes > sum(f.B.nbytes + f.A.nbytes for f in fresh.lora.values())

    start = random_lora(base, 4, (3,))
    tuned = wire.parse_update(order(node, lora=start)[0])
    distance = max(np.abs(tuned.lora[layer].B - start[layer].B).max() for layer in start)
    assert 0 < distance < 0.01  # two warm-up steps of train.lr from where the order began


def test_rates_fall_over_the_rounds_of_the_run(run_config: dict) -> None:
    """B begins as zeros, and Adam's one step is as long as its rate."""
    moved = {}
    for server_round in (1, 100):
        node = simulated(run_config | {"run.rounds": 100, "train.steps": 1})
        lora = wire.parse_update(order(node, server_round=server_round)[0]).lora
        moved[server_round] = max(np.abs(factor.B).max() for name, factor in lora.items() if name.startswith("unet"))
    assert moved == pytest.approx({1: 0.1 * 8e-3, 100: 0.01 * 8e-3}, rel=1e-2)


def test_a_round_after_the_last_is_no_round_of_the_run(run_config: dict) -> None:
    reply = order(simulated(run_config | {"run.rounds": 3}), server_round=4)[0]
    assert reply.has_error() and "round 4 and run.rounds is 3; set run.rounds" in reply.error.reason


def test_the_reply_is_encoded_as_the_order_asks(run_config: dict) -> None:
    replies = {encoding: order(simulated(run_config), encoding=encoding)[0] for encoding in ("float32", "int8")}
    assert "numbers" in replies["int8"].content["lora"] and "numbers" not in replies["float32"].content["lora"]
    plain, small = (wire.parse_update(reply) for reply in replies.values())
    # the adapters here have few numbers beside the headers of 128 bytes a matrix
    assert small.bytes < plain.bytes
    for layer, factor in small.lora.items():
        np.testing.assert_allclose(factor.B @ factor.A, plain.lora[layer].B @ plain.lora[layer].A, atol=1e-3)


def test_same_order_same_bytes(run_config: dict) -> None:
    """The first time latents are made, and afterwards they are read from the disk."""
    one, same, other = (wire.parse_update(order(simulated(run_config), seed=seed)[0]) for seed in (1, 1, 2))
    for layer in one.lora:
        np.testing.assert_array_equal(one.lora[layer].B, same.lora[layer].B)
        np.testing.assert_array_equal(one.lora[layer].A, same.lora[layer].A)
    assert one.loss_last == same.loss_last != other.loss_last


def test_frozen_text_encoder_sends_no_layers_of_it(run_config: dict) -> None:
    update = wire.parse_update(order(simulated(run_config | {"lora.text-encoder": False}))[0])
    assert all(layer.startswith("unet.") for layer in update.lora)


def test_latents_are_made_once(run_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = simulated(run_config)
    typed, base = config.from_run_config(run_config), load.load(run_config["base.name"])
    who = client_app.identify(node, typed)
    first = client_app.prepare(who, typed, base)
    wanted = encode_pixels(base, torch.from_numpy(pixels(who.examples, 16)))
    np.testing.assert_array_equal(first.latents.numpy(), wanted.numpy())
    (kept,) = (tmp_path / "nodes" / "c1").glob("prepared-*.safetensors")
    assert kept.stat().st_mode & 0o077 == 0

    def read_again(*_: object) -> None:
        raise AssertionError("the pictures are read again")

    monkeypatch.setattr(client_app, "read_pixels", read_again)
    again = client_app.prepare(who, typed, base)
    np.testing.assert_array_equal(again.latents.numpy(), first.latents.numpy())
    np.testing.assert_array_equal(again.z, first.z)
    assert not order(node)[0].has_error()
    for changed in ({"base.size": 32}, {"style.source": "prompts"}):
        with pytest.raises(AssertionError, match="read again"):
            client_app.prepare(who, config.from_run_config(run_config | changed), base)
    path = who.examples[0].path
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(AssertionError, match="read again"):
        client_app.prepare(who, typed, base)


def sent(grid: LocalGrid) -> bytes:
    (reply,) = grid.from_nodes
    return reply


def test_nothing_private_leaves_a_node(run_config: dict, pictures: Path, tmp_path: Path) -> None:
    """Design 2.11: adapter, z, n, rank and loss. No caption, style word, file name, path or picture."""
    node = deployed(run_config, pictures, tmp_path, rank=3)
    typed, base = config.from_run_config(run_config), load.load(run_config["base.name"])
    who = client_app.identify(node, typed)
    prepared = client_app.prepare(who, typed, base)
    raw = pixels(who.examples, 16)
    for reply, grid in (query(node), order(node)):
        assert not reply.has_error()
        travelled = sent(grid)
        assert b"anna" in travelled and prepared.z.tobytes() in travelled  # these do leave, so the search can find
        for word in (*SECRETS, str(pictures), str(tmp_path), *(e.caption for e in who.examples)):
            assert word.encode() not in travelled.lower(), word
        for picture, latents, example in zip(raw, prepared.latents.numpy(), who.examples, strict=True):
            assert example.path.read_bytes() not in travelled
            for array in (picture, latents, picture.astype(np.float16), latents.astype(np.float16)):
                assert array[0, 0].tobytes() not in travelled
        allowed = {"lora", "style", "metrics", "about"}
        assert set(reply.content) <= allowed and set(reply.content["style"]) == {"z"}
        assert set(reply.content["about"]) == {"client-id", "base-sha", "method"}


def test_the_client_embedding_never_leaves_its_node(run_config: dict, pictures: Path, tmp_path: Path) -> None:
    node = deployed(run_config | {"method.name": "spire"}, pictures, tmp_path, rank=3)
    reply, grid = order(node)
    arrays, about = client_app.identify(node, config.from_run_config(node.run_config)).private.load("own") or ({}, {})
    v = arrays["after.v"]
    assert about["round"] == 1 and v.any()
    travelled = sent(grid)
    shared = wire.parse_update(reply)
    assert next(iter(shared.lora.values())).B.tobytes() in travelled  # this does leave, so the search can find
    for form in (v, v.astype(np.float16), v.astype(np.float64)):
        for part in (form, form[:4], form[-4:]):
            assert part.tobytes() not in travelled
    assert set(reply.content) == {"lora", "style", "metrics", "about"}


def test_each_node_trains_its_own_method(run_config: dict, pictures: Path, tmp_path: Path) -> None:
    mixed = run_config | {
        "method.of-clients": "c1=zo-token",
        "zo.estimator": "rge",
        "token.template": "{token} {caption}",
    }
    told = wire.parse_profile(query(simulated(mixed))[0])
    assert (told.method, told.rank) == ("zo-token", 1)
    assert wire.parse_profile(query(simulated(mixed, number=0))[0]).method == "lora"
    shared = wire.parse_update(order(simulated(mixed), rank=1)[0])
    assert shared.method == "zo-token" and shared.lora == {} and "token" in shared.arrays
    node = deployed(run_config, pictures, tmp_path, method="spire", rank=2)
    told = wire.parse_profile(query(node)[0])
    assert (told.client, told.method, told.rank) == ("anna", "spire", 2)
    reply, _ = query(deployed(run_config, pictures, tmp_path, method="sopa"))
    assert "'sopa' is no method" in reply.error.reason and "Did you mean 'soda'?" in reply.error.reason


def test_a_round_that_is_asked_for_again_begins_where_it_began(run_config: dict) -> None:
    """The server may stop before a round is complete; the same round must give the same result."""
    node = simulated(run_config | {"method.name": "spire", "run.folder": "/runs/a"})
    for server_round in (1, 2):
        asked = {"server_round": server_round, "last_round": server_round - 1}
        first, again = (wire.parse_update(order(node, **asked)[0]) for _ in range(2))
        for layer in first.lora:
            np.testing.assert_array_equal(first.lora[layer].B, again.lora[layer].B)
    private = client_app.identify(node, config.from_run_config(node.run_config)).private
    before, after = (client_app.kept_before(private, "/runs/a", last_round)["v"] for last_round in (1, 2))
    assert before.any() and not np.array_equal(before, after)
    # nothing of another run, or of a round that the server does not know of
    assert client_app.kept_before(private, "/runs/b", 2) == client_app.kept_before(private, "/runs/a", 5) == {}


def test_a_word_is_sent_once_and_then_its_scalars(run_config: dict) -> None:
    more = {"zo.estimator": "rge", "zo.directions": 1, "method.name": "zo-token", "token.template": "{token} {caption}"}
    node = simulated(run_config | more)
    first = wire.parse_update(order(node, seed=5)[0])
    assert first.arrays.keys() == {"token", "scalars"} and first.arrays["scalars"].shape == (2, 1) and first.begun == 0
    token = first.arrays["token"]
    second = wire.parse_update(order(node, seed=6, server_round=2, last_round=1, arrays={"token": token})[0])
    assert second.arrays.keys() == {"scalars"} and second.begun == 2
    # what the server makes of both is what the node has
    rule = rule_of("rge", config.defaults()["zo.lr"])
    moved, moments = replayed(first, 5, None, None, rule)
    known = with_moments(aggregate_round([moved], None, Settings(), 1), None, {"c1": moments})
    found, _ = replayed(second, 6, token, known, rule)
    own = client_app.identify(node, config.from_run_config(node.run_config)).private.load("own")
    assert own is not None
    assert found.arrays["token"].tobytes() == own[0]["after.x"].tobytes()


def test_soda_sends_arrays_and_the_hash_of_its_directions(run_config: dict) -> None:
    node = simulated(run_config | {"method.name": "soda", "lora.text-encoder": False})
    first = wire.parse_update(order(node)[0])
    assert first.lora == {} and len(first.directions) == 64 and first.rank == 3
    assert wire.parse_profile(query(node)[0]).rank == 1
    second = wire.parse_update(order(node, arrays=first.arrays)[0])
    assert first.arrays.keys() == second.arrays.keys()
    assert any(not np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    reply, _ = order(node, arrays={"unet.nothing.shift": np.ones(3, np.float32)})
    assert "is it for this base?" in reply.error.reason or "which this base does not have" in reply.error.reason


def test_error_about_a_deployed_nodes_pictures_stays_there(
    run_config: dict, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower sends an error's text to the server, and that of a damaged picture has its path."""
    damaged = tmp_path / "holiday"
    damaged.mkdir()
    for i in range(3):
        (damaged / f"portrait{i}.png").write_bytes((pictures / "quillwork" / "portrait0.png").read_bytes()[: 100 + i])
    node = deployed(run_config, pictures, tmp_path, **{"data-root": str(damaged)})
    for reply, _ in (query(node), order(node)):
        assert (
            "the pictures or the key of this node cannot be used (ValueError); the node's own log says why"
            in reply.error.reason
        )
        assert not any(word in reply.error.reason for word in SECRETS)
    assert "portrait0.png" in caplog.text


def test_error_in_a_simulation_says_which_picture(run_config: dict, tmp_path: Path, pictures: Path) -> None:
    damaged = tmp_path / "holiday" / "one"
    damaged.mkdir(parents=True)
    for i in range(3):
        (damaged / f"portrait{i}.png").write_bytes((pictures / "quillwork" / "portrait0.png").read_bytes()[: 100 + i])
    reply, _ = query(simulated(run_config | {"data.root": str(damaged.parent)}, 0, 1))
    assert "portrait0.png" in reply.error.reason


def test_rank_that_does_not_fit_is_named(run_config: dict, pictures: Path, tmp_path: Path) -> None:
    reply, _ = query(deployed(run_config, pictures, tmp_path, rank=99))
    assert "LoRA rank 99 does not fit" in reply.error.reason and "rank in the node config" in reply.error.reason
    reply, _ = order(simulated(run_config), rank=99)
    assert "LoRA rank 99 does not fit" in reply.error.reason


def test_settings_are_those_of_the_run_config(run_config: dict) -> None:
    changed = run_config | {
        "train.steps": 9, "train.batch-size": 5, "train.lr": 0.5, "train.text-lr": 0.25, "train.min-snr-gamma": 4.0,
        "train.precision": "bfloat16", "train.caption-dropout": 0.75, "lora.text-encoder": False, "train.lr-ratio": 2.0,
        "train.timesteps": "100,700",
    }  # fmt: skip
    node = client_app.identify(simulated(changed), config.from_run_config(changed))
    descent = Descent(
        steps=9, batch_size=5, min_snr_gamma=4.0, precision="bfloat16", caption_dropout=0.75, timesteps=(100, 700)
    )
    wanted = lora.Settings(descent, lr=0.5, text_lr=0.25, text_encoder=False, rank=3, ratio=2.0)
    assert node.method.settings(node.place) == wanted


def test_unknown_setting_is_refused_before_anything_is_loaded(run_config: dict) -> None:
    reply, _ = query(simulated(run_config | {"train.stepz": 3}))
    assert "unknown setting 'train.stepz'; did you mean 'train.steps'?" in reply.error.reason


def test_malformed_order_is_refused(run_config: dict) -> None:
    LocalGrid(client_app.app, {})
    reply, _ = ask(simulated(run_config), Message(RecordDict(), 7, "train"))
    assert "the message lacks" in reply.error.reason


def test_z_leaves_hidden_by_the_key_which_stays(run_config: dict, tmp_path: Path) -> None:
    keyed, plain = run_config | {"style.key": "turn"}, wire.parse_profile(query(simulated(run_config))[0]).z
    assert not (tmp_path / "nodes" / federation.FILE).exists()
    profile, asked = query(simulated(keyed))
    key = federation.read_key(tmp_path / "nodes" / federation.FILE)
    wanted = federation.turn(plain, key)
    np.testing.assert_array_equal(wire.parse_profile(profile).z, wanted)
    reply, trained = order(simulated(keyed))
    np.testing.assert_array_equal(wire.parse_update(reply).z, wanted)
    for grid in (asked, trained):
        assert wanted.tobytes() in sent(grid)
        assert not any(secret in sent(grid) for secret in (plain.tobytes(), key, key.hex().encode()))


def test_simulated_nodes_share_a_key_and_so_keep_their_cosines(run_config: dict) -> None:
    found = {
        how: np.stack([
            wire.parse_profile(query(simulated(run_config | {"style.key": how}, number))[0]).z for number in range(4)
        ])
        for how in ("none", "turn")
    }  # fmt: skip
    np.testing.assert_allclose(found["turn"] @ found["turn"].T, found["none"] @ found["none"].T, atol=1e-6)
    assert np.abs(found["turn"] - found["none"]).max() > 0.05


def test_a_deployed_node_reads_its_key_from_its_own_disk(
    run_config: dict, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keyed = run_config | {"style.key": "turn"}
    reply, _ = query(deployed(keyed, pictures, tmp_path))
    assert "the pictures or the key of this node cannot be used (ValueError)" in reply.error.reason
    assert str(tmp_path) not in reply.error.reason and "openssl rand -hex 32" in caplog.text
    (tmp_path / "own").mkdir(exist_ok=True)
    (tmp_path / "own" / federation.FILE).write_text("ab" * 32)
    (tmp_path / "named.key").write_text("cd" * 32)
    plain = wire.parse_profile(query(deployed(run_config, pictures, tmp_path))[0]).z
    for more, key in (({}, b"\xab" * 32), ({"key": str(tmp_path / "named.key")}, b"\xcd" * 32)):
        got = wire.parse_profile(query(deployed(keyed, pictures, tmp_path, **more))[0]).z
        np.testing.assert_array_equal(got, federation.turn(plain, key))
