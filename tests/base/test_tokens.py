import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import WIDTH, tiny_base
from safetensors.numpy import load_file, save_file

from fedsd.base.denoise import encode_prompts, tokenize
from fedsd.base.load import Base, load
from fedsd.base.tokens import (
    FILE,
    ExtendedEmbedding,
    Token,
    expanded,
    load_token,
    save_token,
    token_embedding,
    with_token,
    word_vectors,
)  # fmt: skip

PROMPTS = ["a cat in <user-s> style", "<user-s>", "a cat, <user-s> style", "a cat"]


def a_token(k: int = 1, width: int = WIDTH, seed: int = 0) -> Token:
    return Token("<user-s>", np.random.default_rng(seed).standard_normal((k, width)).astype(np.float32))


def stock(base: Base) -> Base:
    """Copies of its own, which diffusers may change."""
    return replace(base, tokenizer=copy.deepcopy(base.tokenizer), text_encoder=copy.deepcopy(base.text_encoder))


@pytest.mark.parametrize("k", [1, 3])
def test_stock_diffusers_opens_the_file_with_the_same_output(base: Base, k: int, tmp_path: Path) -> None:
    token = a_token(k)
    carrying, other = with_token(base, token), stock(base)
    pipe = other.pipeline()
    pipe.load_textual_inversion(str(save_token(token, tmp_path)))
    found = encode_prompts(carrying, PROMPTS)
    for prompt, states in zip(PROMPTS, found, strict=True):
        torch.testing.assert_close(pipe.encode_prompt(prompt, "cpu", 1, False)[0][0], states, rtol=0, atol=1e-5)
    ours, theirs = (
        p(PROMPTS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        for p in (carrying.pipeline(), pipe)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    plain = base.pipeline()(
        PROMPTS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
    )
    assert np.abs(ours - plain.images).max() > 1e-3


def test_the_embedded_base_opens_in_stock_diffusers_too(tmp_path: Path) -> None:
    base = load("tiny")
    token = a_token(2, 80)
    other = stock(base)
    pipe = other.pipeline()
    pipe.load_textual_inversion(str(save_token(token, tmp_path)))
    states = pipe.encode_prompt(PROMPTS[0], "cpu", 1, False)[0]
    torch.testing.assert_close(encode_prompts(with_token(base, token), PROMPTS[:1]), states, rtol=0, atol=1e-5)


def test_base_is_not_touched(base: Base) -> None:
    words, before, plain = len(base.tokenizer), tokenize(base, PROMPTS), encode_prompts(base, PROMPTS)
    table = base.text_encoder.get_input_embeddings()
    carrying = with_token(base, a_token(2))
    assert len(carrying.tokenizer) == words + 2
    assert len(base.tokenizer) == words and base.text_encoder.get_input_embeddings() is table
    assert torch.equal(tokenize(base, PROMPTS), before) and torch.equal(encode_prompts(base, PROMPTS), plain)
    own = {id(p) for p in base.text_encoder.parameters()}
    assert [p.shape for p in carrying.text_encoder.parameters() if id(p) not in own] == [(2, WIDTH)]
    torch.testing.assert_close(encode_prompts(carrying, ["a cat"]), encode_prompts(base, ["a cat"]), rtol=0, atol=0)


def test_rows_of_table_and_token() -> None:
    table = torch.nn.Embedding.from_pretrained(torch.arange(8.0).view(4, 2))
    once = ExtendedEmbedding(table, 4, torch.tensor([[10.0, 11.0], [20.0, 21.0]]))
    twice = ExtendedEmbedding(once, 6, torch.tensor([[30.0, 31.0]]))
    found = twice(torch.tensor([[0, 3, 4], [5, 6, 1]]))
    assert found.tolist() == [[[0, 1], [6, 7], [10, 11]], [[20, 21], [30, 31], [2, 3]]]


def test_two_tokens_in_one_prompt(base: Base) -> None:
    first, second = a_token(2), Token("<user-o>", a_token(1, seed=1).vectors)
    both = with_token(with_token(base, first), second)
    rows = both.text_encoder.get_input_embeddings()(tokenize(both, ["<user-o> <user-s>"]))[0, 1:4]
    np.testing.assert_array_equal(rows.numpy(), np.concatenate([second.vectors, first.vectors]))
    assert token_embedding(both).vectors.shape == (1, WIDTH)


def test_gradient_reaches_the_vectors_alone(base: Base) -> None:
    carrying = with_token(base, a_token(2))
    vectors = token_embedding(carrying).vectors.requires_grad_(True)
    encode_prompts(carrying, PROMPTS).square().sum().backward()
    assert (vectors.grad.abs().sum(1) > 0).all()
    assert not any(p.requires_grad for p in base.text_encoder.parameters())


def test_prompts_are_expanded(base: Base) -> None:
    tokenizer = with_token(base, a_token(3)).tokenizer
    written = "<user-s> <user-s>_1 <user-s>_2"
    assert expanded(tokenizer, ["a <user-s> cat", "a cat", "<user-s>,<user-s>"]) == [
        f"a {written} cat", "a cat", f"{written},{written}",
    ]  # fmt: skip
    assert expanded(with_token(base, a_token()).tokenizer, ["a <user-s>"]) == ["a <user-s>"]


def test_start_from_words() -> None:
    base = tiny_base()
    table = base.text_encoder.get_input_embeddings().weight
    red, cat, on = (table[i].numpy() for i in base.tokenizer("red cat on", add_special_tokens=False).input_ids)
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(word_vectors(base, "red cat on", 1), [(red + cat + on) / 3], **close)
    np.testing.assert_allclose(word_vectors(base, "red cat on", 2), [(red + cat) / 2, on], **close)
    np.testing.assert_allclose(word_vectors(base, "red cat on", 5), [red, cat, on, red, cat], **close)


def test_file_comes_back(tmp_path: Path) -> None:
    token = a_token(3)
    again = load_token(save_token(token, tmp_path))
    assert again.name == token.name and again.names == ["<user-s>", "<user-s>_1", "<user-s>_2"]
    np.testing.assert_array_equal(again.vectors, token.vectors)
    assert list(load_file(tmp_path / FILE)) == ["<user-s>"]
    save_file({"<user-s>": token.vectors[0]}, tmp_path / "flat.safetensors")
    np.testing.assert_array_equal(load_token(tmp_path / "flat.safetensors").vectors, token.vectors[:1])


@pytest.mark.parametrize("name", ["cat", "sks", "<|endoftext|>"])
def test_word_of_the_vocabulary_is_refused(base: Base, name: str) -> None:
    with pytest.raises(ValueError, match="is in the vocabulary already; choose another name"):
        with_token(base, Token(name, a_token().vectors))


def test_second_token_of_the_same_name_is_refused(base: Base) -> None:
    with pytest.raises(ValueError, match="<user-s> is in the vocabulary already"):
        with_token(with_token(base, a_token()), a_token())


def test_bad_tokens_are_refused(base: Base, tmp_path: Path) -> None:
    for name in ("", "<User-S>", "user s", " <user-s>"):
        with pytest.raises(ValueError, match="cannot be a token; give it a name in lower case without blanks"):
            Token(name, a_token().vectors)
    for vectors in (np.zeros(3), np.zeros((0, 3)), np.full((1, 3), np.nan)):
        with pytest.raises(ValueError, match="must be finite numbers"):
            Token("<user-s>", vectors)
    with pytest.raises(ValueError, match="have 3 numbers but the base's words have 16; the token belongs to another"):
        with_token(base, Token("<user-s>", np.zeros((1, 3), np.float32)))
    with pytest.raises(ValueError, match="carries no token"):
        token_embedding(base)
    with pytest.raises(ValueError, match=r"none was given; set token\.initial"):
        word_vectors(base, " ")
    with pytest.raises(ValueError, match="at least 1 vector, got 0"):
        word_vectors(base, "style", 0)
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"no\.safetensors cannot be read"):
        load_token(tmp_path / "no.safetensors")
    save_file({"a": np.zeros(1), "b": np.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="holds 2 arrays and so is no token"):
        load_token(tmp_path / "two.safetensors")
