"""The dense recap as one CUDA kernel: gather, LayerNorm, projection and text, written in Triton.

The operations of ``src/condition`` are the reference, and the path of every other device. The two linear maps
behind the norm, CLIP's and the projector's, are multiplied into one matrix first, so that a chosen token is
read, normalised, mapped and joined with its text in one pass, and nothing between is written to memory.

Compiled for sm_90, and checked forward and backward by Triton's interpreter; not yet run on a card.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MEAN, _CONCAT, _NONE = (tl.constexpr(number) for number in (1, 2, 3))
JOINS = {"add": 0, "mean": 1, "concat": 2, "none": 3}
BLOCKS = {"bm": 32, "bn": 64, "bk": 64}  # rows, columns and depth of a tile


@triton.jit  # type: ignore[untyped-decorator]
def condition_kernel(  # type: ignore[no-untyped-def]
    tokens, choice, weight, bias, matrix, offset, text, out,
    rows_total, count, width, channels, draws, picked, positions, text_stride, deep, across, eps,
    chosen: tl.constexpr, normal: tl.constexpr, weighted: tl.constexpr, biased: tl.constexpr,
    shifted: tl.constexpr, join: tl.constexpr, precision: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    """A tile of the condition (rows_total, channels); a row is one position of one draw of one sample."""
    rows = tl.program_id(0) * bm + tl.arange(0, bm)
    columns = tl.program_id(1) * bn + tl.arange(0, bn)
    depth = tl.arange(0, bk)
    inside = rows < rows_total
    position, draw = rows % positions, rows // positions
    sample = draw // draws
    token = position
    if chosen:
        at = draw * picked + position - 1
        patch = tl.load(choice + at, mask=inside & (position > 0) & (position <= picked), other=-1)
        token = tl.where(position > 0, tl.where(patch < 0, count, patch + 1), 0)  # an empty slot: no token
    visual = inside & (position <= picked) & (token < count)
    start = tokens + (sample * count + token).to(tl.int64) * width

    mean = tl.zeros([bm], tl.float32)
    spread = tl.zeros([bm], tl.float32)
    if normal:
        for k in range(0, width, bk):
            mask = visual[:, None] & (k + depth < width)[None, :]
            mean += tl.sum(
                tl.load(start[:, None] + (k + depth)[None, :], mask=mask, other=0).to(tl.float32), 1
            )
        mean /= width
        for k in range(0, width, bk):
            mask = visual[:, None] & (k + depth < width)[None, :]
            x = tl.load(start[:, None] + (k + depth)[None, :], mask=mask, other=0).to(tl.float32)
            x = tl.where(mask, x - mean[:, None], 0.0)
            spread += tl.sum(x * x, 1)
        spread = 1.0 / tl.sqrt(spread / width + eps)

    total = tl.zeros([bm, bn], tl.float32)
    for k in range(0, width, bk):
        real = k + depth < width
        x = tl.load(start[:, None] + (k + depth)[None, :], mask=visual[:, None] & real[None, :], other=0)
        if normal:
            normed = (x.to(tl.float32) - mean[:, None]) * spread[:, None]
            if weighted:
                normed *= tl.load(weight + k + depth, mask=real, other=0).to(tl.float32)[None, :]
            if biased:
                normed += tl.load(bias + k + depth, mask=real, other=0).to(tl.float32)[None, :]
            x = tl.where(real[None, :], normed, 0.0)
        mask = real[:, None] & (columns < channels)[None, :]
        part = tl.load(matrix + (k + depth)[:, None] * deep + columns[None, :] * across, mask=mask, other=0)
        total = tl.dot(x.to(part.dtype), part, total, input_precision=precision)
    if shifted:
        total += tl.load(offset + columns, mask=columns < channels, other=0).to(tl.float32)[None, :]
    total = tl.where(visual[:, None], total, 0.0)

    written = inside[:, None] & (columns < channels)[None, :]
    if join != _NONE:
        word = position
        if join == _MEAN:
            word = position * 0
        if join == _CONCAT:
            word = position - 1 - picked
        place = (
            text + sample.to(tl.int64)[:, None] * text_stride + word[:, None] * channels + columns[None, :]
        )
        total += tl.load(place, mask=written & (word >= 0)[:, None], other=0).to(tl.float32)
    to = out + rows.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=written)


@torch.library.custom_op("diva_rs::recap_condition", mutates_args=())
def recap_condition(
    tokens: Tensor,
    choice: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    matrix: Tensor,
    offset: Tensor | None,
    text: Tensor,
    eps: float | None,
    picked: int,
    join: int,
) -> Tensor:
    """The condition (B, N, S, C) of tokens (B, 1+P, W), a choice (B, N, k) of patches or the first ``picked``
    ones, the norm's parameters, the map ``matrix`` (W, C) with its ``offset``, and text (1 or B, L, C).

    ``eps`` is the norm's; None: there is no norm.
    """
    out = tokens.new_empty(_shape(tokens, choice, matrix, text, picked, join), dtype=matrix.dtype)
    batch, draws, positions, channels = out.shape
    rows = batch * draws * positions
    words = text.contiguous()
    exact = matrix.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    condition_kernel[triton.cdiv(rows, BLOCKS["bm"]), triton.cdiv(channels, BLOCKS["bn"])](
        tokens.contiguous(), choice, weight, bias, matrix, offset, words, out,
        rows, tokens.shape[1], tokens.shape[2], channels, draws, picked, positions,
        0 if len(words) == 1 else words.stride(0), *matrix.stride(), eps or 0.0,
        choice is not None, eps is not None, weight is not None, bias is not None, offset is not None,
        join, "ieee" if exact else "tf32", **BLOCKS,
    )  # fmt: skip
    return out


@recap_condition.register_fake
def _(tokens, choice, weight, bias, matrix, offset, text, eps, picked, join):  # type: ignore[no-untyped-def]
    return tokens.new_empty(_shape(tokens, choice, matrix, text, picked, join), dtype=matrix.dtype)


def _shape(
    tokens: Tensor, choice: Tensor | None, matrix: Tensor, text: Tensor, picked: int, join: int
) -> tuple[int, ...]:
    positions = 1 + picked + (text.shape[1] if join == JOINS["concat"] else 0)
    return len(tokens), 1 if choice is None else choice.shape[1], positions, matrix.shape[1]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, choice, weight, bias, matrix, offset, _, ctx.eps, ctx.picked, _ = inputs
    ctx.save_for_backward(tokens, choice, weight, bias, matrix, offset)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """By libtorch's products: the rows of all draws at once, and the class token's once for each sample."""
    tokens, choice, weight, bias, matrix, offset = ctx.saved_tensors
    (batch, count, width), channels = tokens.shape, grad.shape[-1]
    picked = grad[:, :, 1 : 1 + ctx.picked]
    if choice is None:
        choice = torch.arange(ctx.picked, device=grad.device).expand(batch, 1, -1)
    else:
        picked = picked.masked_fill((choice < 0)[..., None], 0)
    rows = torch.cat([grad[:, :, 0].sum(1, keepdim=True), picked.flatten(1, 2)], 1).reshape(-1, channels)
    slots = torch.nn.functional.pad(choice.flatten(1) + 1, (1, 0))
    index = (slots + torch.arange(batch, device=grad.device)[:, None] * count).reshape(-1)

    source = torch.nn.functional.embedding(index, tokens.reshape(-1, width)).float()
    hidden, to_hidden = source, rows @ matrix.t()
    to_weight = to_bias = None
    if ctx.eps is not None:
        wide = [None if part is None else part.float() for part in (weight, bias)]
        hidden, mean, rstd = torch.ops.aten.native_layer_norm(source, [width], *wide, ctx.eps)
        wanted = [True, weight is not None, bias is not None]
        to_hidden, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
            to_hidden.float(), source, [width], mean, rstd, *wide, wanted
        )
    to_tokens = torch.ops.aten.embedding_dense_backward(to_hidden, index, batch * count, -1, False)
    parts = zip((to_weight, to_bias), (weight, bias), strict=True)
    return (
        to_tokens.view_as(tokens).to(tokens.dtype),
        None,
        *(None if to is None or like is None else to.to(like.dtype) for to, like in parts),
        hidden.to(rows.dtype).t() @ rows,
        None if offset is None else rows.sum(0),
        *(None,) * 4,
    )


recap_condition.register_autograd(_backward, setup_context=_setup)


@dataclass(frozen=True)
class FusedRecap:
    """`recap_condition` as the kernel of a `_native.Bridge`."""

    names: tuple[str, ...]  # of the bridge's parameters, in its order
    eps: float | None
    transposed: bool  # whether CLIP's projection is (D, W)
    chosen: bool  # whether a choice is given; otherwise all patches, or none, are taken
    patches: int  # that are taken without a choice
    join: str

    def __call__(self, tokens: Tensor, text: Tensor, *rest: Tensor) -> Tensor:
        choice = rest[0] if self.chosen else None
        params = dict(zip(self.names, rest[self.chosen :], strict=True))
        matrix, projector = params.get("proj"), params.get("projector.weight")
        if matrix is not None and self.transposed:
            matrix = matrix.t()
        if projector is not None:
            matrix = projector.t() if matrix is None else matrix @ projector.t()
        assert matrix is not None
        if self.join == "mean":
            text = text.mean(1, keepdim=True)
        norm = (params.get("norm.weight"), params.get("norm.bias"))
        picked = self.patches if choice is None else choice.shape[2]
        offset = params.get("projector.bias")
        return recap_condition(  # type: ignore[no-any-return]
            tokens, choice, *norm, matrix, offset, text, self.eps, picked, JOINS[self.join]
        )
