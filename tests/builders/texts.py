"""A tokenizer for the tiny models, whose vocabulary has 64 entries and whose context is 8 tokens long."""

import torch
from torch import Tensor


def tokenize(texts: list[str]) -> Tensor:
    """(B, 8) ids: start, up to six words (1 to 61, from their letters), end (the largest id), padding."""
    rows = torch.zeros(len(texts), 8, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        words = [1 + sum(map(ord, word)) % 61 for word in text.split()[-6:]]
        row[: len(words) + 2] = torch.tensor([62, *words, 63])
    return rows
