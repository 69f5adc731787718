import open_clip
import pytest

from fedsd.base.tokenizer import WORDS, build_tokenizer

TEXTS = ["a picture of a cat", "", "Café, naïve 😀 it's 123 DOGS!", "  two\n spaces ", "supercalifragilistic " * 20]


@pytest.mark.parametrize("length", [12, 77])
def test_same_tokens_as_open_clip(length: int) -> None:
    tokenizer = build_tokenizer(length)
    ours = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    theirs = open_clip.SimpleTokenizer(context_length=length)(TEXTS)
    for ids, kept, wanted in zip(ours.input_ids, ours.attention_mask.bool(), theirs, strict=True):
        assert (
            ids[kept].tolist() == wanted[wanted != 0].tolist()
        )  # open_clip pads with 0, CLIP's own text model with the end
        assert (ids[~kept] == tokenizer.eos_token_id).all()
    assert ours.input_ids.shape == (len(TEXTS), length)
    assert len(tokenizer) == WORDS == 49408 and tokenizer.model_max_length == length


def test_specials_are_the_last_two_words() -> None:
    assert build_tokenizer(77)("").input_ids == [49406, 49407]
