from dataclasses import replace

from huggingface_hub import ModelCard

from fedsd.cli.report.model_card import model_card
from fedsd.cli.report.outcome import read_outcome
from fedsd.store import RunFolder


def test_hubs_can_read_the_front_matter(finished: RunFolder) -> None:
    card = ModelCard(model_card(read_outcome(finished.path)))
    assert card.data.base_model == "tiny" and card.data.library_name == "diffusers"
    assert {"lora", "text-to-image", "stable-diffusion", "diffusers"} <= set(card.data.tags)


def test_it_tells_what_the_adapters_are_and_how_they_score(finished: RunFolder) -> None:
    run = read_outcome(finished.path)
    lines = model_card(run).splitlines()
    assert "![samples of every adapter](grids/r02.png)" in lines
    assert [line for line in lines if line.startswith("| `loras/cluster-1`")] == [
        "| `loras/cluster-1` | c1, c4 | 145 | 8 | 0.34 |"
    ]
    assert "| cluster adapters | 18.0 | 15.0 | 21.0 |" in lines
    assert "pipe.load_lora_weights('loras/cluster-0')" in lines
    # cartoon, pixel, sketch: names in the table's head, one rule below it
    head = lines.index("| method | cartoon | pixel | sketch |")
    assert lines[head + 1] == "|---|---|---|---|"


def test_a_base_with_odd_letters_is_still_yaml(finished: RunFolder) -> None:
    run = read_outcome(finished.path)
    odd = replace(run, settings={"base.name": 'a: "b" # c'})
    assert ModelCard(model_card(odd)).data.base_model == 'a: "b" # c'
