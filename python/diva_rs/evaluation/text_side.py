"""Whether a tokenizer is the model's own: rows of another length or vocabulary would be scored in silence."""

import html
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.errors import ConfigError, a_type

Tokens = Any
"""A tensor (B, length) of token ids, or what a transformers tokenizer returns."""

_OWN = (
    "give the tokenizer of the model: open_clip.get_tokenizer(name), clip.tokenize, or a transformers "
    "AutoTokenizer or AutoProcessor loaded from the folder of the original model"
)
_LEGACY_END = 2  # transformers reads at the largest id where a configuration of CLIP says 2


@dataclass(frozen=True)
class TextSide:
    """What a model's text tower is made for; None where the model does not say it."""

    context: int | None = None  # tokens of every row
    vocabulary: int | None = None  # ids lie below
    end: int | None = None  # the id where a text's embedding is read: every row has it
    lower: bool = False  # whether it was trained on lower-case texts
    plain: bool = False  # whether it was trained on texts without punctuation

    @classmethod
    def of(cls, model: Any) -> "TextSide":
        """Of a model of open_clip, OpenAI's `clip` or transformers; recognised by their parts."""
        config = getattr(getattr(model, "config", None), "text_config", None)
        for text in (getattr(model, "text", None), getattr(model, "text_model", None), model):
            inner = getattr(text, "embeddings", text)
            words = getattr(inner, "token_embedding", None)
            if isinstance(words, nn.Embedding):
                break
        else:
            sizes = (getattr(part, "vocab_size", None) for part in (config, model))
            return cls(vocabulary=next((size for size in sizes if isinstance(size, int) and size), None))
        places = getattr(inner, "position_embedding", getattr(inner, "positional_embedding", None))
        context = None if places is None else len(getattr(places, "weight", places))
        if getattr(text, "cls_emb", None) is not None:  # CoCa appends its own token
            return cls(None if context is None else context - 1, words.num_embeddings)
        kind = str(getattr(getattr(model, "config", None), "model_type", ""))
        end = _end(text, words.num_embeddings)
        return cls(context, words.num_embeddings, end, "siglip" in kind, kind == "siglip")

    def checked(self, tokenizer: Any) -> Callable[[Sequence[str]], Tokens]:
        """The tokenizer as a function of texts whose rows are checked; raises ConfigError."""
        if not callable(tokenizer):
            raise ConfigError(f"tokenizer is {a_type(tokenizer)}: {_OWN}")
        theirs = of_transformers(tokenizer)
        tokenize = self._padding(tokenizer) if theirs else tokenizer
        known = _known_words(tokenizer)
        size = self.vocabulary or known
        # Vocabularies are padded by a few entries, and tokenizers extended by some.
        if known is not None and size is not None and not 0.9 * size <= known <= 1.1 * size:
            raise ConfigError(
                f"the tokenizer ({type(tokenizer).__name__}) has {known} tokens, the model {size}: it is "
                "another model's, or was loaded from a folder without tokenizer files, such as an exported "
                f"one; {_OWN}"
            )

        def checked(texts: Sequence[str]) -> Tokens:
            listed = [self._cleaned(text) for text in texts] if theirs else list(texts)
            listed = [text.lower() for text in listed] if self.lower else listed
            with torch.device("cpu"):  # tokens are made where a default device says
                tokens = tokenize(listed)
            self._check(tokens.get("input_ids") if isinstance(tokens, Mapping) else tokens, listed)
            return tokens

        return checked

    def _cleaned(self, text: str) -> str:
        """A text as the other libraries' tokenizers clean it: open_clip/tokenizer.py, `basic_clean` and
        `canonicalize_text`; clip/simple_tokenizer.py.
        """
        if find_spec("ftfy") is not None:  # which both libraries require
            text = require("ftfy").fix_text(text)
        text = html.unescape(html.unescape(text))
        if self.plain:
            text = text.replace("_", " ").translate(dict.fromkeys(map(ord, string.punctuation)))
        return text

    def _padding(self, tokenizer: Any) -> Callable[[Sequence[str]], Tokens]:
        """A transformers tokenizer pads to the model's length, as its model was trained."""
        own = getattr(tokenizer, "tokenizer", tokenizer)
        if not hasattr(own, "convert_ids_to_tokens"):
            raise ConfigError(f"tokenizer is a {type(own).__name__}, which has no tokenizer: {_OWN}")
        if own.pad_token_id is None:
            raise ConfigError(f"the tokenizer ({type(own).__name__}) has no pad token: {_OWN}")
        # A tokenizer without a limit says 10**30.
        length = self.context or min(own.model_max_length, 77)
        padded = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
        return lambda texts: own(texts, return_tensors="pt", **padded)

    def _check(self, ids: Any, texts: Sequence[str]) -> None:
        if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != len(texts) or ids.is_floating_point():
            shape = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else a_type(ids)
            raise ConfigError(
                f"the tokenizer gave {shape} for {len(texts)} texts: whole numbers (texts, length)"
            )
        if self.context is not None and ids.shape[1] != self.context:
            raise ConfigError(
                f"the tokenizer gives rows of {ids.shape[1]} tokens, the model's text tower takes "
                f"{self.context}: {_OWN}"
            )
        lowest, highest = int(ids.min()), int(ids.max())
        if self.vocabulary is not None and not (lowest >= 0 and highest < self.vocabulary):
            wrong = highest if highest >= self.vocabulary else lowest
            raise ConfigError(
                f"the tokenizer gives the token {wrong}, the model's vocabulary is 0 to "
                f"{self.vocabulary - 1}: {_OWN}"
            )
        if self.end is not None:
            places = (ids == self.end).to(torch.int64).argmax(dim=1)
            # The first token is the start, or the end is missing.
            for text, place in zip(texts, places.tolist(), strict=True):
                if place == 0:
                    raise ConfigError(
                        f"the tokens of {text!r} do not hold the end token {self.end}, where the model reads "
                        f"a text's embedding: {_OWN}"
                    )


def _end(text: Any, vocabulary: int) -> int | None:
    """The id at which the text tower reads; None where it reads at a fixed place."""
    found = getattr(text, "eos_token_id", None)  # transformers' CLIP; SigLIP reads the last place
    if hasattr(text, "embeddings"):
        return vocabulary - 1 if found == _LEGACY_END else found
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))  # OpenAI's has no name
    other = getattr(text, "text_eos_id", getattr(text, "eos_id", None)) if pool == "eos" else None
    return vocabulary - 1 if pool == "argmax" else other


def _known_words(tokenizer: Any) -> int | None:
    """How many tokens a tokenizer has; None where it does not say."""
    own: Any
    for own in (tokenizer, getattr(tokenizer, "tokenizer", None)):
        if of_transformers(own) and hasattr(own, "convert_ids_to_tokens"):
            return len(own)
        size = getattr(own, "vocab_size", None)
        if isinstance(size, int):
            return size
    return None


def of_transformers(value: Any) -> bool:
    """Whether a class of the value is one of transformers."""
    return any(cls.__module__.startswith("transformers.") for cls in type(value).__mro__)
