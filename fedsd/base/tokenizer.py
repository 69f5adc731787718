"""CLIP's tokenizer in transformers' format, made from the vocabulary that open_clip carries: no network is needed."""

import gzip
import importlib.resources
from typing import Any

from open_clip.tokenizer import bytes_to_unicode
from transformers import CLIPTokenizer

WORDS = 49408  # of CLIP's vocabulary (Radford et al. 2021, arXiv 2103.00020)
_MERGES = WORDS - 2 * 256 - 2  # lines of the BPE file that CLIP uses


def build_tokenizer(max_length: int) -> CLIPTokenizer:
    """Return the tokenizer: 256 bytes, 256 word-final bytes, 48,894 merges and two specials, 49,408 in all.

    max_length: tokens that the text encoder takes, specials included; 77 in SD 1.x.
    """
    packed = importlib.resources.files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : _MERGES + 1]
    letters = list(bytes_to_unicode().values())
    words = letters + [f"{c}</w>" for c in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    pairs: Any = [tuple(m.split()) for m in merges]
    return CLIPTokenizer(vocabulary, pairs, pad_token="<|endoftext|>", model_max_length=max_length)
