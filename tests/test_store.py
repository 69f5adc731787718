import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.store import PrivateFolder, RunFolder, export_diffusers, load_lora, save_lora, write_file


def make_lora(seed: int = 0, dtype: type = np.float32) -> dict[str, Factor]:
    rng = np.random.default_rng(seed)
    return {
        layer: Factor(rng.standard_normal((8, rank)).astype(dtype), rng.standard_normal((rank, 6)).astype(dtype))
        for layer, rank in (("unet.mid.to_q", 2), ("text_encoder.encoder.layers.0.q_proj", 3))
    }


def assert_same(left, right) -> None:
    assert sorted(left) == sorted(right)
    for layer, factor in right.items():
        np.testing.assert_array_equal(left[layer].B, factor.B)
        np.testing.assert_array_equal(left[layer].A, factor.A)
        assert left[layer].B.dtype == factor.B.dtype


def adapters() -> dict[str, dict[str, Factor]]:
    return {name: make_lora(seed) for seed, name in enumerate(("mix", "neutral", "cluster-0", "clients/c0"))}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 2,000 bytes within the block: the write fails as it does on a full disk.

    It holds for every file of the process, pytest's own report too where that goes into one, so it must end before
    the test does.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_folder_has_its_places(run):
    assert sorted(path.name for path in run.path.iterdir()) == ["ckpt", "embeddings", "grids", "logs", "loras", "plots"]
    assert run.path.is_absolute()
    assert (run.rounds(), run.latest_round(), run.events()) == ([], None, [])


def test_a_run_is_not_begun_where_there_is_one(run):
    run.append_event({"event": "run.start"})
    with pytest.raises(ValueError, match="already holds a run; resume it, or name another folder"):
        RunFolder.create(run.path)
    with pytest.raises(ValueError, match=r"nothing holds no run; check run\.folder"):
        RunFolder.open(run.path / "nothing")


def test_events_are_lines_with_a_time(run):
    run.append_event({"event": "round.start", "round": 1, "clients": ["c0", "ünïcode"]})
    run.append_event({"event": "round.done", "round": 1})
    events = run.events()
    assert [entry["event"] for entry in events] == ["round.start", "round.done"]
    assert events[0]["clients"] == ["c0", "ünïcode"]
    assert datetime.fromisoformat(events[0]["time"]) <= datetime.fromisoformat(events[1]["time"])


def test_an_event_cut_short_by_a_kill_is_dropped(run):
    run.append_event({"event": "run.start"})
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-11-')
    assert len(run.events()) == 1
    again = RunFolder.open(run.path)
    again.append_event({"event": "run.done"})
    assert [entry["event"] for entry in again.events()] == ["run.start", "run.done"]


def test_metrics_are_rows_under_one_header(run):
    run.append_metrics({"round": 1, "loss": 0.5})
    run.append_metrics({"loss": 0.25, "round": 2})
    assert (run.path / "metrics.csv").read_text() == "round,loss\n1,0.5\n2,0.25\n"
    with pytest.raises(ValueError, match=r"has columns round, loss; the new row has round, kid"):
        run.append_metrics({"round": 3, "kid": 1.0})


def test_arrays_lie_beside_the_adapters(run):
    sent = {
        "mix": {"unet.q.shift": np.arange(3, dtype=np.float32)},
        "cluster-0": {"w": np.ones((1, 2, 1, 1), np.float32)},
    }
    folder = run.save_round({"round": 1}, {"mix": {}}, sent)
    assert (folder / "arrays" / "cluster-0.safetensors").is_file()
    assert run.load_round(1)[1] == {"mix": {}}
    back = run.load_arrays(1)
    assert back.keys() == sent.keys()
    np.testing.assert_array_equal(back["mix"]["unet.q.shift"], sent["mix"]["unet.q.shift"])
    assert back["cluster-0"]["w"].shape == (1, 2, 1, 1)
    run.save_round({"round": 2}, {})
    assert run.load_arrays(2) == {}


def test_a_resumed_run_writes_the_metrics_of_an_unfinished_round_again(run):
    run.save_round({"round": 1}, {})
    for server_round, client in ((1, "c0"), (1, "c,1"), (2, "c0")):
        run.append_metrics({"round": server_round, "client": client, "loss": 0.5})
    with (run.path / "metrics.csv").open("a") as file:
        file.write("2,c1")
    RunFolder.open(run.path).append_metrics({"round": 2, "client": "c0", "loss": 0.25})
    assert (run.path / "metrics.csv").read_text() == 'round,client,loss\n1,c0,0.5\n1,"c,1",0.5\n2,c0,0.25\n'


def test_a_round_comes_back_as_it_was_saved(run):
    state = {"round": 3, "clusters": {"0": {"beta": 0.1, "z": [0.6, 0.8]}}, "silhouette": None}
    folder = run.save_round(state, adapters())
    assert folder == run.path / "ckpt" / "r03"
    assert [path.name for path in folder.parent.iterdir()] == ["r03"]
    assert sorted(everything_below(folder)) == [
        "clients/c0.safetensors",
        "cluster-0.safetensors",
        "mix.safetensors",
        "neutral.safetensors",
        "state.json",
    ]
    back, loras = run.load_round(3)
    assert back == state
    assert loras.keys() == adapters().keys()
    for name, lora in adapters().items():
        assert_same(loras[name], lora)
    assert (run.rounds(), run.latest_round()) == ([3], 3)


def test_the_same_round_is_the_same_bytes(tmp_path):
    folders = [RunFolder.create(tmp_path / name).save_round({"round": 1}, adapters()) for name in ("a", "b")]
    assert everything_below(folders[0]) == everything_below(folders[1])


def test_rounds_are_in_order_and_unfinished_ones_do_not_count(run):
    for server_round in (2, 10, 100):
        run.save_round({"round": server_round}, {})
    (run.path / "ckpt" / ".r101.tmp").mkdir()
    (run.path / "ckpt" / ".r101.tmp" / "state.json").write_text("{}")
    (run.path / "ckpt" / "r102").mkdir()
    assert run.rounds() == [2, 10, 100]
    assert run.save_round({"round": 101}, {}).name == "r101"
    with pytest.raises(ValueError, match=r"r102 holds no complete round"):
        run.load_round(102)
    with pytest.raises(ValueError, match=r"round 10 is already in .*; resume from the latest round"):
        run.save_round({"round": 10}, {})


def test_a_full_disk_leaves_the_round_before_whole_and_says_so(run):
    small = {"mix": {"q": Factor(np.ones((2, 1), np.float32), np.ones((1, 2), np.float32))}}
    run.save_round({"round": 1}, small)
    before = everything_below(run.path)
    large = {"cluster-0": {"q": Factor(np.ones((900, 1), np.float32), np.ones((1, 2), np.float32))}}
    problem = r"no space left for round 2 in .*ckpt; round 1 is intact: free some space and resume"
    with small_disk(), pytest.raises(OSError, match=problem):
        run.save_round({"round": 2}, small | large)
    assert everything_below(run.path) == before
    assert run.latest_round() == 1
    assert_same(run.load_round(1)[1]["mix"], small["mix"])


def test_a_full_disk_in_the_first_round(run):
    with small_disk(), pytest.raises(OSError, match="no round was complete before it"):
        run.save_round({"round": 1, "text": "x" * 3000}, {})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "deep" / "report.html"
    write_file(file, b"first")
    write_file(file, b"second")
    assert file.read_bytes() == b"second"
    with small_disk(), pytest.raises(OSError, match="File too large"):
        write_file(file, b"x" * 3000)
    assert everything_below(tmp_path) == {"deep/report.html": b"second"}


def test_texts_are_written_below_the_folder(run):
    assert run.write("plots/loss.csv", "a,b\n") == run.path / "plots" / "loss.csv"
    assert (run.path / "plots" / "loss.csv").read_text() == "a,b\n"
    assert stat.S_IMODE((run.path / "plots" / "loss.csv").stat().st_mode) & 0o400


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_adapter_file_keeps_every_bit(tmp_path, dtype):
    lora = make_lora(dtype=dtype)
    lora["odd.order"] = Factor(np.asfortranarray(np.arange(6, dtype=dtype).reshape(3, 2)), np.eye(2, dtype=dtype))
    save_lora(tmp_path / "a.safetensors", lora, {"round": 3})
    assert_same(load_lora(tmp_path / "a.safetensors"), lora)


def test_a_damaged_adapter_file_is_named(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read"):
        load_lora(file)
    with pytest.raises(ValueError, match=r"missing\.safetensors cannot be read"):
        load_lora(tmp_path / "missing.safetensors")
    PrivateFolder(tmp_path, "c0").save("half", {"q.B": np.ones((2, 1), np.float32)})
    with pytest.raises(ValueError, match=r"is no adapter: 'q\.A' is missing"):
        load_lora(tmp_path / "c0" / "half.safetensors")


def test_what_a_node_keeps_to_itself_comes_back_and_is_for_its_user_only(tmp_path):
    folder = PrivateFolder(tmp_path / "nodes", "c7")
    assert folder.load("lora") is None
    arrays = {"token": np.arange(4, dtype=np.float32), "step": np.array(3)}
    folder.save("lora", arrays, {"round": 2, "base": "abc"})
    back, about = folder.load("lora")
    assert about == {"round": 2, "base": "abc"}
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)
    assert folder.path == tmp_path / "nodes" / "c7"
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder.path / "lora.safetensors").stat().st_mode) == 0o600
    assert not [name for name in os.listdir(folder.path) if name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["../c0", "", ".hidden", "a/b"])
def test_a_name_stays_inside_its_folder(tmp_path, run, name):
    with pytest.raises(ValueError, match="cannot name a file"):
        PrivateFolder(tmp_path, name)
    with pytest.raises(ValueError, match="cannot name a file"):
        run.export(name, make_lora())


def test_an_export_has_the_keys_and_the_scale_that_diffusers_reads(run):
    from safetensors import safe_open

    file = run.export("cluster-0", make_lora())
    assert file == run.path / "loras" / "cluster-0" / "pytorch_lora_weights.safetensors"
    with safe_open(file, framework="np") as readable:
        keys, header = set(readable.keys()), readable.metadata()
        np.testing.assert_array_equal(
            readable.get_tensor("unet.mid.to_q.lora_B.weight"), make_lora()["unet.mid.to_q"].B
        )
    assert keys == {
        f"{module}.lora_{side}.weight"
        for module in ("unet.mid.to_q", "text_encoder.text_model.encoder.layers.0.q_proj")
        for side in "AB"
    }
    assert header["format"] == "pt"
    config = json.loads(header["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (2, 2)
    assert (config["text_encoder.r"], config["text_encoder.lora_alpha"]) == (3, 3)
    assert config["text_encoder.target_modules"] == ["encoder.layers.0.q_proj"]


@pytest.fixture(scope="module")
def pipeline():
    """A Stable Diffusion of diffusers' and transformers' own classes, tiny and untrained."""
    torch = pytest.importorskip("torch")
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=99,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=0,
                eos_token_id=98,
            )
        ),
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_stock_diffusers_opens_an_export_with_the_same_output(pipeline, tmp_path):  # I21
    import torch

    modules = {
        f"{component}.{name}": module
        for component in ("unet", "text_encoder")
        for name, module in getattr(pipeline, component).named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"))
    }
    assert len(modules) == 4 * 8 + 8
    rng = np.random.default_rng(0)
    lora = {
        layer: Factor(
            rng.standard_normal((module.out_features, 2 + index % 3)).astype(np.float32) / 4,
            rng.standard_normal((2 + index % 3, module.in_features)).astype(np.float32) / 4,
        )
        for index, (layer, module) in enumerate(modules.items())
    }

    @torch.no_grad()
    def output():
        torch.manual_seed(1)
        hidden = pipeline.text_encoder(torch.tensor([[0, 5, 6, 98], [0, 7, 8, 98]]))[0]
        return pipeline.unet(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), hidden).sample

    plain = output()
    pipeline.load_lora_weights(export_diffusers(lora, tmp_path / "lora").parent)
    opened = output()
    pipeline.unload_lora_weights()
    for layer, module in modules.items():
        module.weight.data += torch.from_numpy(dense(lora[layer]))
    torch.testing.assert_close(opened, output(), rtol=1e-5, atol=1e-5)
    assert (opened - plain).abs().max() > 0.01
