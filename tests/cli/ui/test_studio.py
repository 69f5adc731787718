"""What the page draws with, against real servers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ies import CREDENTIAL, serving, write_run
from models import tiny_base

from fedsd.base import adapters, denoise
from fedsd.cli.ui.studio import BASE, Moment, Studio, Wish, choices
from fedsd.hybrid.client import Remote
from fedsd.privacy.words import register
from fedsd.store import PrivateFolder, RunFolder

WISH = Wish("cluster-0", "my cat", "a cat", 7, 10, 0.3, 2.0, 1.0, 1.0)


def wish(**changes: object) -> Wish:
    return Wish(**{**vars(WISH), **changes})


def studio(run: RunFolder, private: Path, remote: Remote | None = None) -> Studio:
    return Studio(tiny_base(), run.path, remote, private)


def test_a_drawing_is_told_by_server_and_device(drawable: RunFolder, tmp_path: Path) -> None:
    with serving(drawable) as served:
        one = studio(drawable, tmp_path, Remote(served.url, CREDENTIAL))
        moments = list(one.draw(WISH))
        last = moments[-1]
        assert moments[0].by_server is None or moments[0].by_server == 3
        assert (last.done, last.by_server, last.why) == (10, 3, "") and last.drawn is not None
        assert last.drawn.told is not None and last.drawn.told.cache == "miss"
        again = list(one.draw(WISH))[-1].drawn
        assert again is not None and again.told is not None and again.told.cache == "hit"


@pytest.mark.parametrize(("url", "timeout", "why"), [("", 0.001, "took more than"), ("http://127.0.0.1:9", 5, "down")])
def test_a_server_that_is_slow_or_down_is_done_without(
    drawable: RunFolder, tmp_path: Path, url: str, timeout: float, why: str
) -> None:
    with serving(drawable) as served:
        one = studio(drawable, tmp_path, Remote(url or served.url, CREDENTIAL, timeout=timeout))
        last = list(one.draw(WISH))[-1]
    assert last.by_server == 0 and why in last.why
    assert np.array_equal(one.picture(_latents(last)), alone(drawable))


def test_without_a_server_the_picture_is_that_of_generate(drawable: RunFolder, tmp_path: Path) -> None:
    one = studio(drawable, tmp_path)
    assert np.array_equal(one.picture(_latents(list(one.draw(WISH))[-1])), alone(drawable))
    assert not np.array_equal(one.picture(_latents(list(one.draw(wish(adapter=BASE)))[-1])), alone(drawable))
    assert not np.array_equal(one.picture(_latents(list(one.draw(wish(local_scale=0.5)))[-1])), alone(drawable))


def alone(run: RunFolder) -> np.ndarray:
    with adapters.adapted(tiny_base(), run.load_adapter(1, "cluster-0")):
        return denoise.generate(tiny_base(), ["my cat"], [7], steps=10, guidance=2.0)[0]


def _latents(moment: Moment) -> torch.Tensor:
    assert moment.latents is not None
    return moment.latents


def test_a_private_word_is_never_sent(drawable: RunFolder, tmp_path: Path) -> None:
    one = studio(drawable, tmp_path, Remote("http://127.0.0.1:9"))
    assert one.private_word("a Sketch") is None
    register(PrivateFolder(tmp_path, "anna"), ["sketch"])
    assert one.private_word("a Sketch") == "sketch"
    with pytest.raises(ValueError, match="private word 'sketch'"):
        list(one.draw(wish(generic="a sketch")))


def test_the_request_shown_is_the_request_sent(drawable: RunFolder, tmp_path: Path) -> None:
    shown = json.loads(studio(drawable, tmp_path).request(WISH))
    assert shown["prompt"] == "a cat" and "my cat" not in json.dumps(shown)
    assert (shown["seed"], shown["steps"], shown["server_steps"]) == (7, 10, 3)


def test_every_adapter_can_be_chosen_by_its_style(drawable: RunFolder, tmp_path: Path) -> None:
    found = choices(studio(drawable, tmp_path).run())
    assert [name for _, name in found] == [
        "cluster-0", "cluster-1", "clients/c0", "clients/c1", "clients/c2", "clients/c3", "mix", "",
    ]  # fmt: skip
    labels = dict((name, label) for label, name in found)
    assert {labels["cluster-0"], labels["cluster-1"]} == {"Cluster 0 · pixel", "Cluster 1 · sketch"}
    assert labels["clients/c0"] == "Client c0, personal · pixel"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": None}, "the seed must be from 0 .*; it is empty"), ({"steps": 0}, "number of steps .* it is 0"),
        ({"share": 0.6}, "server's share must be from 0 to 0.5; it is 0.6"), ({"guidance": 0.5}, "guidance"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wish(**changes)


def test_a_share_is_at_least_one_step_unless_it_is_none() -> None:
    assert [wish(share=share).server_steps for share in (0, 0.01, 0.3, 0.5)] == [0, 1, 3, 5]


def test_a_run_without_a_round_cannot_be_drawn_with(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=())
    with pytest.raises(ValueError, match="no complete round yet; wait for the first one"):
        studio(folder, tmp_path)
