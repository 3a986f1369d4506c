"""Tokenizers for the tiny models, whose vocabulary has 64 entries and whose context is 8 tokens long."""

from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor


def tokenize(texts: list[str]) -> Tensor:
    """(B, 8) ids: start, up to six words (1 to 61, from their letters), end (the largest id), padding."""
    rows = torch.zeros(len(texts), 8, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        words = [1 + sum(map(ord, word)) % 61 for word in text.split()[-6:]]
        row[: len(words) + 2] = torch.tensor([62, *words, 63])
    return rows


def word_tokenizer(size: int, end: int) -> Any:
    """A tokenizer of transformers with so many tokens: first letters of words, and ``end`` behind a text."""
    names = [chr(ord("a") + n) if n < 26 else f"<{n}>" for n in range(size)]
    names[end], names[-1 if end != size - 1 else -2] = "<end>", "<unk>"
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>")
    )
    letters = tokenizers.normalizers.Replace(tokenizers.Regex(r"\B\w"), "")
    inner.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), letters])
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", end)]
    )
    special = {"pad_token": "<end>", "eos_token": "<end>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
