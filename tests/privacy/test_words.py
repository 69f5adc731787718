from pathlib import Path

import pytest

from fedsd.privacy.words import held_in, register, registered, registered_below
from fedsd.store import PrivateFolder


@pytest.mark.parametrize(
    "text",
    [
        "a dog, sketch",
        "A SKETCH of a dog",
        "sketch-like dog",
        "ｓｋｅｔｃｈ",
        "skétch",
        "a dog (sketch:1.2)",
        "<sketch>",
        "my_sketch",
    ],
)
def test_a_private_word_is_found_however_it_is_written(text: str) -> None:
    assert held_in(text, ["dune", "sketch"]) == "sketch"


@pytest.mark.parametrize("text", ["a dog", "sketchy dog", "", "s k e t c h"])
def test_other_words_may_be_sent(text: str) -> None:
    assert held_in(text, ["dune", "sketch"]) is None


def test_a_private_word_may_be_several() -> None:
    assert held_in("in Anna's  garden, at night", ["Annas garden", "anna's garden"]) == "anna's garden"
    assert held_in("the garden of Anna", ["anna's garden"]) is None


def test_words_stay_in_the_private_folder(tmp_path: Path) -> None:
    anna, bert = PrivateFolder(tmp_path, "anna"), PrivateFolder(tmp_path, "bert")
    assert registered(anna) == () and registered_below(tmp_path) == ()
    assert register(anna, ["sketch", "<user-s>"]) == ("<user-s>", "sketch")
    assert register(anna, ["dune", "sketch"]) == ("<user-s>", "dune", "sketch") == registered(anna)
    register(bert, ["owl"])
    assert registered_below(tmp_path) == ("<user-s>", "dune", "owl", "sketch")
    assert registered_below(tmp_path / "none") == ()
    assert (anna.path / "words.safetensors").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("word", ["", " ", "<>"])
def test_a_word_needs_a_letter(tmp_path: Path, word: str) -> None:
    with pytest.raises(ValueError, match="at least one letter or digit"):
        register(PrivateFolder(tmp_path, "anna"), [word])
