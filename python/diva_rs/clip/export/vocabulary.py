"""The vocabulary that OpenAI's CLIP and most of open_clip's share, as transformers' tokenizer files."""

from importlib.util import find_spec
from typing import Any

from diva_rs._base.optional import require
from diva_rs.clip.export.source import Config

_START, _END = "<|startoftext|>", "<|endoftext|>"
_SIZE = 49408  # byte pairs, and the two tokens above, which open_clip spells differently


def tokenizer_files(config: Config) -> dict[str, Any]:
    """The content of each file, by its name; empty for a model without text or of another vocabulary.

    ``config`` is the model's config.json. The vocabulary is read from open_clip.
    """
    text = config.get("text_config", {})
    if config["model_type"] != "clip" or text.get("vocab_size") != _SIZE or not find_spec("open_clip"):
        return {}
    words: Any = require("open_clip.tokenizer", extra="open-clip").SimpleTokenizer()
    tokens = [*list(words.encoder)[: _SIZE - 2], _START, _END]
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": text["max_position_embeddings"],
        "do_lower_case": True,
        "bos_token": _START,
        **dict.fromkeys(("eos_token", "pad_token", "unk_token"), _END),
    }
    merges = "".join(f"{left} {right}\n" for left, right in words.bpe_ranks)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return {
        "vocab.json": vocabulary,
        "merges.txt": f"#version: 0.2\n{merges}",
        "tokenizer_config.json": about,
    }
