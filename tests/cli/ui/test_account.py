import re
from dataclasses import replace

import pytest
import torch

from fedsd.cli.ui.account import bar, figures, progress, reading
from fedsd.cli.ui.studio import Moment, Wish
from fedsd.hybrid.client import Drawn, Remote
from fedsd.hybrid.protocol import Told

WISH = Wish("cluster-0", "my cat", "a cat", 7, 10, 0.3, 2.0, 1.0, 1.0)
REMOTE = Remote("https://ies:8600", timeout=30)
LATENTS = torch.zeros(1, 4, 8, 8)
TOLD = Told(
    base_sha="0" * 64, scheduler_sha="0" * 64, lora_sha="0" * 64, server_round=1, steps=10, server_steps=3,
    cache="miss", batch=1, ms_queue=20.0, ms_compute=100.0,
)  # fmt: skip
DRAWN = Drawn(LATENTS, TOLD, sent=300, received=33_000, waited=0.15, computed=2.5)


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html)).strip()


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (Moment(0, None), "Asking https://ies:8600 for steps 1 to 3: 4 s. After 30 s this device draws them itself."),
        (Moment(5, 3), "The server drew steps 1 to 3. This device draws step 6 of 10."),
        (Moment(10, 3, LATENTS, "", DRAWN), "Done. The server drew steps 1 to 3, this device steps 4 to 10."),
        (
            Moment(1, 0, LATENTS, "it is busy (503)"),
            "Without the server: it is busy (503). This device draws step 2 of",
        ),
        (Moment(10, 0, LATENTS, "it is down", DRAWN), "Done. Without the server: it is down. This device drew all 10"),
        (Moment(10, 0, LATENTS, "", DRAWN), "Done. This device drew all 10 steps; no server was asked."),
    ],
)
def test_who_draws_is_said_in_plain_words(moment: Moment, said: str) -> None:
    assert said in words(progress(moment, WISH, REMOTE, 4.2))


@pytest.mark.parametrize(
    ("moment", "cells"),
    [
        (Moment(0, None), {"server asked": 3, "device ": 7}),
        (Moment(4, 3), {"server done": 3, "device done": 1, "device ": 6}),
        (Moment(4, 0), {"device done": 4, "device ": 6}),
    ],
)
def test_the_bar_tells_the_servers_steps_from_the_devices(moment: Moment, cells: dict[str, int]) -> None:
    found = re.findall('<i class="(.*?)">', bar(moment, WISH))
    assert {kind: found.count(kind) for kind in found} == cells


def test_what_a_server_says_cannot_become_part_of_the_page() -> None:
    assert "&lt;script&gt;" in progress(Moment(1, 0, None, "<script>alert(1)</script>"), WISH, REMOTE, 0)


def test_the_figures_of_a_miss_add_up_to_the_wait() -> None:
    shown = words(figures(DRAWN, asked=True))
    assert "cache miss computed for this request queue 20 ms" in shown and "server 100 ms" in shown
    assert "network 30 ms" in shown and "33.3 kB 300 B up, 33.0 kB down" in shown and "this device 2.5 s" in shown


def test_a_hit_costs_the_server_nothing_and_a_shared_run_has_no_network_time() -> None:
    hit = words(figures(replace(DRAWN, told=TOLD.model_copy(update={"cache": "hit"})), asked=True))
    assert "queue 0 ms" in hit and "server 0 ms 100 ms when it was made" in hit and "network 150 ms" in hit
    assert "network –" in words(figures(replace(DRAWN, told=TOLD.model_copy(update={"cache": "joined"})), asked=True))


def test_the_time_that_was_waited_in_vain_is_shown() -> None:
    alone = replace(DRAWN, told=None, why="it is slow", waited=30.0)
    assert "server 30.0 s waited in vain" in words(figures(alone, asked=True))
    assert "server" not in words(figures(replace(alone, why="no server was asked"), asked=False))


@pytest.mark.parametrize(
    ("share", "remote", "word", "said"),
    [
        (0.3, REMOTE, None, "The server reads these 5 characters"), (0, REMOTE, "cat", "share is 0: it is not asked"),
        (0.3, None, "cat", "nothing leaves this machine"), (0.3, REMOTE, "cat", 'Refused: "cat" is a private word'),
    ],
)  # fmt: skip
def test_what_the_server_reads_is_said(share: float, remote: Remote | None, word: str | None, said: str) -> None:
    assert said in reading("a cat", share, remote, word).replace("&quot;", '"')
