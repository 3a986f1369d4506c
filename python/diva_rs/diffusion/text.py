"""Text tokens: given, or made of a prompt by the model's own text encoders as in its diffusers pipeline."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diva_rs._base.optional import library_errors
from diva_rs._base.tensors import described, ordinary
from diva_rs.diffusion.frozen import freeze, home, moved, no_autocast
from diva_rs.errors import ConfigError, DataError, ShapeError

_CLIP_TEXT = {"CLIPTextModel", "CLIPTextModelWithProjection"}
_PROMPTS = 64  # that are encoded together


class Parts(Protocol):
    """Where tokenizers and text encoders are found, by their diffusers names."""

    def get(self, name: str) -> Any | None:
        """The part, or None when there is none."""

    def need(self, name: str) -> Any:
        """The part, or a ConfigError that says where it was looked for."""


Encode = Callable[[Sequence[str], Parts], Tensor]


class TextSource:
    """The text tokens of one diffusion model, on ``device``; every prompt is encoded once.

    ``given`` are tokens (1 | B, L, width) that are used for every prompt. With ``joins`` False they are one
    for all samples.
    """

    def __init__(
        self, parts: Parts, given: Tensor | None, width: int, joins: bool, device: torch.device
    ) -> None:
        self.parts, self.device = parts, device
        self.given = None if given is None else moved(_checked(given, width, joins), device)
        self._cache: dict[str, Tensor] = {}

    def tokens(self, prompt: str, width: int, encode: Encode) -> Tensor:
        """Text tokens (1 | B, L, width) for a prompt, without gradients."""
        if self.given is not None:
            return self.given
        if prompt not in self._cache:
            self._cache[prompt] = self.encoded([prompt], width, encode)
        return self._cache[prompt]

    def encoded(self, prompts: Sequence[str], width: int, encode: Encode) -> Tensor:
        """Text tokens (M, L, width) of M prompts, some at a time, without gradients; none are kept."""
        parts = [
            encode(prompts[start : start + _PROMPTS], self.parts)
            for start in range(0, len(prompts), _PROMPTS)
        ]
        tokens = torch.cat(parts)
        if tokens.shape[-1] != width:
            raise ShapeError(
                f"the text encoder's tokens are {tokens.shape[-1]} wide, the denoiser reads a width of "
                f"{width}: they belong to different models; pass Teacher(unet, text_condition=...)"
            )
        return moved(tokens, self.device)


def encode_prompts(prompts: Sequence[str], parts: Parts, names: Sequence[str], penultimate: bool) -> Tensor:
    """M prompts through CLIP text encoders: (M, L, C), without gradients; their states stand side by side.

    What exceeds the tokenizer's length is cut off, with a warning. Encoders that a model does not have are
    left out. With ``penultimate`` False it gives the last hidden state, as diffusers'
    StableDiffusionPipeline.encode_prompt; with True the one before, without the final LayerNorm, as
    StableDiffusionXLPipeline.encode_prompt.
    """
    outputs = [_output(prompts, *pair, hidden=penultimate) for pair in _encoders(parts, names)]
    states = [output.hidden_states[-2] if penultimate else output.last_hidden_state for output in outputs]
    return torch.cat([state.to(states[0].device) for state in states], dim=-1)


def encode_t5(prompts: Sequence[str], parts: Parts, name: str, length: int) -> Tensor:
    """M prompts through the T5 encoder ``name``: (M, L, C), without gradients, padded or cut to ``length``.

    As in diffusers' FluxPipeline.encode_prompt, which attends to padding.
    """
    tokenizer, encoder = parts.need(name.replace("text_encoder", "tokenizer")), parts.need(name)
    states: Tensor = _output(prompts, tokenizer, encoder, length).last_hidden_state
    return states


def pooled_prompts(
    prompts: Sequence[str], part: Callable[[str], Any | None], names: Sequence[str]
) -> Tensor | None:
    """M prompts' pooled outputs (M, V) of CLIP text encoders, side by side; None where one is missing."""
    pooled = []
    for name in names:
        tokenizer, encoder = part(name.replace("text_encoder", "tokenizer")), part(name)
        if tokenizer is None or encoder is None:
            return None
        output = _output(prompts, tokenizer, encoder)
        found = getattr(output, "text_embeds", None)
        pooled.append(output.pooler_output if found is None else found)
    return torch.cat([vector.to(pooled[0].device) for vector in pooled], dim=-1)


def _checked(text: Tensor, width: int, joins: bool) -> Tensor:
    text = ordinary("text_condition", text)
    shape = tuple(text.shape)
    expected = f"hidden states ({'1 | B' if joins else '1'}, L, {width}) of its text encoder, and no ids"
    fits = len(shape) == 3 and 0 not in shape and shape[2] == width and (joins or shape[0] == 1)
    if not fits or not text.is_floating_point():
        raise ShapeError(f"text_condition is {described(text)}, but the denoiser reads {expected}")
    if not text.is_meta and not bool(torch.isfinite(text).all()):
        raise DataError("text_condition has values that are not finite")
    return text.detach()


def _encoders(parts: Parts, names: Sequence[str]) -> list[tuple[Any, Any]]:
    pairs = []
    for name in names:
        encoder = parts.get(name)
        if encoder is None:
            continue  # SDXL's refiner has the second one only
        if not _CLIP_TEXT & {base.__name__ for base in type(encoder).__mro__}:
            raise ConfigError(
                f"the text encoder is a {type(encoder).__name__}, only CLIP's are run here: encode the "
                "prompt with its own pipeline and pass Teacher(unet, text_condition=...)"
            )
        pairs.append((parts.need(name.replace("text_encoder", "tokenizer")), encoder))
    return pairs or [(parts.need("tokenizer"), parts.need("text_encoder"))]


def _output(
    prompts: Sequence[str], tokenizer: Any, encoder: Any, length: int | None = None, hidden: bool = False
) -> Any:
    freeze(encoder)
    device, _ = home(encoder, "the text encoder")
    positions = int(encoder.config.max_position_embeddings) if length is None else length
    length = min(tokenizer.model_max_length, positions)
    prompts = list(prompts)
    longest = max(map(len, tokenizer(prompts, truncation=False, verbose=False).input_ids))
    if longest > length:
        warnings.warn(
            f"the prompt is {longest} tokens long, the text encoder reads {length}: the rest is cut off",
            UserWarning,
            stacklevel=2,
        )
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    highest, entries = int(tokens.input_ids.max()), int(encoder.config.vocab_size)
    if highest >= entries:
        raise ConfigError(
            f"the tokenizer gives token {highest}, but the text encoder has {entries}: they belong to "
            "different models; pass Teacher(unet, text_condition=...)"
        )
    # As the pipelines: padding is attended to, unless the encoder's own configuration masks it.
    masked = getattr(encoder.config, "use_attention_mask", None)
    with (
        torch.no_grad(),
        no_autocast(device),
        library_errors("the text encoder", f"prompts of {length} tokens"),
    ):
        return encoder(
            tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device) if masked else None,
            output_hidden_states=hidden,
        )
