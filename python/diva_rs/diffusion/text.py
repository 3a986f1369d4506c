"""Text tokens: given, or a prompt through the model's own text encoders as in its diffusers pipeline."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diva_rs._base.arguments import checked, refused_by
from diva_rs._base.kinds import dense
from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.frozen import freeze, home, moved, plain
from diva_rs.errors import ConfigError, DataError, ShapeError, shown

_TEXT = dense()
_CLIP_TEXT = {"CLIPTextModel", "CLIPTextModelWithProjection"}


class TextSource:
    """The text tokens of one diffusion model; every prompt is encoded once.

    Args:
        parts: where tokenizers and text encoders are looked for.
        given: text tokens (1 | B, L, C), used whatever the prompt.
        sdxl: whether the model reads the next to last hidden states of up to two encoders, side by side.
        device: where the tokens are wanted; the encoders run where they are.
    """

    def __init__(self, parts: Parts, given: Tensor | None, sdxl: bool, device: torch.device) -> None:
        self.parts, self.sdxl, self.device = parts, sdxl, device
        self.given = None if given is None else moved(given, device)
        self.cache: dict[str, Tensor] = {}

    def tokens(self, prompt: str, width: int) -> Tensor:
        """Text tokens (1 | B, L, width) for a prompt, without gradients.

        Raises:
            ConfigError: an encoder or a tokenizer is missing or of an unsupported kind.
            ShapeError: the encoders give another width.
        """
        if self.given is not None:
            return self.given
        if prompt not in self.cache:
            tokens = encode_prompt(prompt, self._encoders(), penultimate=self.sdxl)
            if tokens.shape[-1] != width:
                raise ShapeError(
                    f"the text encoder's tokens are {tokens.shape[-1]} wide, the denoiser reads a width of "
                    f"{width}: they belong to different models; pass Teacher(unet, text_condition=...)"
                )
            self.cache[prompt] = moved(tokens, self.device)
        return self.cache[prompt]

    def _encoders(self) -> list[tuple[Any, Any]]:
        pairs = []
        for suffix in ("", "_2") if self.sdxl else ("",):
            encoder = self.parts.get("text_encoder" + suffix)
            if encoder is None:
                continue  # SDXL's refiner has the second one only
            if not _CLIP_TEXT & {base.__name__ for base in type(encoder).__mro__}:
                raise ConfigError(
                    f"the text encoder is a {type(encoder).__name__}, only CLIP's are run here: encode the "
                    "prompt with its own pipeline and pass Teacher(unet, text_condition=...)"
                )
            pairs.append((self.parts.need("tokenizer" + suffix), encoder))
        return pairs or [(self.parts.need("tokenizer"), self.parts.need("text_encoder"))]


def encode_prompt(prompt: str, encoders: Sequence[tuple[Any, Any]], penultimate: bool) -> Tensor:
    """One prompt through (tokenizer, CLIP text encoder) pairs: (1, L, C), without gradients.

    Args:
        prompt: any text; what exceeds the tokenizer's length is cut off, with a warning.
        encoders: one pair, or SDXL's two, whose hidden states are put side by side.
        penultimate: False for the last hidden state (diffusers StableDiffusionPipeline.encode_prompt), True
            for the one before, without the final LayerNorm (StableDiffusionXLPipeline.encode_prompt).

    Raises:
        ConfigError: a tokenizer does not belong to its text encoder.
        DataError: a text encoder does not run, as where its config.json is damaged.
    """
    states = []
    for tokenizer, encoder in encoders:
        freeze(encoder)
        device, _ = home(encoder, "the text encoder")
        longest = tokenizer.model_max_length
        if not isinstance(longest, int) or longest < 1:
            raise ConfigError(f"the tokenizer's model_max_length is {shown(longest)}, no whole number")
        length = min(longest, int(encoder.config.max_position_embeddings))
        _warn_if_cut(prompt, tokenizer, length)
        tokens = tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        highest, entries = int(tokens.input_ids.max()), int(encoder.config.vocab_size)
        if highest >= entries:
            raise ConfigError(
                f"the tokenizer gives token {highest}, but the text encoder has {entries}: they belong to "
                "different models; pass Teacher(unet, text_condition=...)"
            )
        # As the pipelines: padding is attended to, unless the encoder's own configuration masks it.
        masked = getattr(encoder.config, "use_attention_mask", None)
        with torch.no_grad(), plain(device), refused_by("the text encoder", f"a prompt of {length} tokens"):
            output = encoder(
                tokens.input_ids.to(device),
                attention_mask=tokens.attention_mask.to(device) if masked else None,
                output_hidden_states=penultimate,
            )
        states.append(output.hidden_states[-2] if penultimate else output.last_hidden_state)
    return torch.cat([state.to(states[0].device) for state in states], dim=-1)


def checked_text(text: Tensor, width: int) -> Tensor:
    """The given text tokens, detached.

    Raises:
        ShapeError: it is not (1 | B, L, width), or token ids instead of hidden states.
        DataError: a value is not finite.

    >>> checked_text(torch.zeros(1, 8, 24), 32)
    Traceback (most recent call last):
    ...
    diva_rs.errors.ShapeError: text_condition is (1, 8, 24), but the denoiser reads tokens of width 32: ...
    """
    if not isinstance(text, Tensor):
        raise ConfigError(f"text_condition is a {type(text).__name__}, expected a tensor (1 | B, L, {width})")
    text = checked("text_condition", text, _TEXT)
    shape = tuple(text.shape)
    if text.ndim != 3 or 0 in shape or not text.is_floating_point():
        raise ShapeError(
            f"text_condition is {text.dtype} {shape}, expected hidden states (1 | B, L, {width}) and no ids"
        )
    if shape[2] != width:
        raise ShapeError(
            f"text_condition is {shape}, but the denoiser reads tokens of width {width}: encode the prompt "
            "with the text encoder that it was trained with"
        )
    if not text.is_meta and not bool(torch.isfinite(text).all()):
        raise DataError("text_condition has values that are not finite")
    return text.detach()


def _warn_if_cut(prompt: str, tokenizer: Any, length: int) -> None:
    whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(whole) > length:
        warnings.warn(
            f"the prompt is {len(whole)} tokens long, the text encoder reads {length}: the rest is cut off",
            UserWarning,
            stacklevel=2,
        )
