"""Everything that does not fit a bridge is an exception that says what, where and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builders.conditions import BATCH, CHANNELS, PATCHES, TEXT, WIDTH, build
from diva_rs import ConfigError, DataError, DeviceError, ShapeError, WeightsError, _native

pytestmark = pytest.mark.hostile


def bridge(**changes: Any) -> _native.Bridge:
    case = build("class")
    arguments: dict[str, Any] = {
        "norm": (case.norm.weight, case.norm.bias, 1e-5),
        "proj": (case.proj, False),
        "projector": {"weight": case.projector.weight, "bias": case.projector.bias},
        "recap": "random",
        "number": None,
        "join": "mean",
    }
    return _native.Bridge(**arguments | changes)


def f64(*size: int) -> torch.Tensor:
    return torch.zeros(*size, dtype=torch.float64)


TOKENS, WORDS = f64(BATCH, 1 + PATCHES, WIDTH), f64(1, TEXT, CHANNELS)
CHOICE = torch.zeros(BATCH, 2, 4, dtype=torch.int64)


def mlp(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "0.weight": f64(12),
        "0.bias": f64(12),
        "1.weight": f64(14, 12),
        "1.bias": f64(14),
        "3.weight": f64(10, 14),
        "3.bias": f64(10),
        **changes,
    }


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ((f64(10, 16), WORDS, CHOICE), ShapeError, r"`tokens` has shape \[10, 16\], expected 3 axes"),
        ((f64(0, 10, 16), WORDS, CHOICE), ShapeError, "at least one image and one token"),
        ((f64(3, 0, 16), WORDS, CHOICE), ShapeError, "at least one image and one token"),
        ((f64(3, 10, 17), WORDS, CHOICE), ShapeError, r"\[3, 10, 17\], expected \(B, 1\+P, 16\)"),
        ((TOKENS.long(), WORDS, CHOICE), ShapeError, "`tokens` is Int64, expected a floating-point dtype"),
        ((TOKENS.to("meta"), WORDS, CHOICE), DeviceError, "`tokens` is on meta or mps but .* are on cpu"),
        ((TOKENS, WORDS), ConfigError, r"needs a choice of patches \(B, N, k\) int64"),
        ((TOKENS, WORDS, CHOICE[0]), ShapeError, r"`choice` has shape \[2, 4\], expected 3 axes \(B, N, k\)"),
        ((TOKENS, WORDS, CHOICE[:2]), ShapeError, r"`choice` has shape \[2, 2, 4\], expected \(3, N, k\)"),
        ((TOKENS, WORDS, CHOICE[:, :0]), ShapeError, "at least one draw"),
        ((TOKENS, WORDS, CHOICE.int()), ShapeError, "`choice` is Int, expected Int64"),
        ((TOKENS, WORDS, CHOICE.to("meta")), DeviceError, "`choice` is on"),
        ((TOKENS, WORDS[0], CHOICE), ShapeError, r"`text` has shape \[11, 10\], expected 3 axes"),
        ((TOKENS, f64(2, 11, 10), CHOICE), ShapeError, r"\[2, 11, 10\], expected a batch of 1 or 3"),
        ((TOKENS, f64(1, 11, 9), CHOICE), ShapeError, r"\[1, 11, 9\], expected a width of 10"),
        ((TOKENS, f64(1, 0, 10), CHOICE), ShapeError, "at least one text token"),
        ((TOKENS, WORDS.int(), CHOICE), ShapeError, "`text` is Int, expected a floating-point dtype"),
        ((TOKENS, WORDS.to("meta"), CHOICE), DeviceError, "`text` is on"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(inputs: tuple[Any, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        bridge().forward(*inputs)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("patch", [-2, PATCHES, 2**62, -(2**63)])
def test_a_patch_that_does_not_exist_is_named_with_its_place(patch: int, contiguous: bool) -> None:
    choice = CHOICE.clone()
    choice[1, 0, 3] = patch
    tokens = TOKENS if contiguous else TOKENS.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(DataError, match=rf"choice\[1, 0, 3\] is {patch}, .* patches 0 to 8 \(-1"):
        bridge().forward(tokens, WORDS, choice)


@pytest.mark.parametrize("recap", ["class", "all", "text"])
def test_a_choice_that_is_not_needed_is_refused(recap: str) -> None:
    with pytest.raises(ConfigError, match=f"the `{recap}` recap takes none"):
        bridge(recap=recap).forward(TOKENS, WORDS, CHOICE)


def test_more_visual_than_text_tokens_names_both_and_the_way_out() -> None:
    match = r"each of the 5 visual tokens, but it has 4: choose at most 3 patches, or text=\"mean\""
    with pytest.raises(ShapeError, match=match):
        bridge(join="add").forward(TOKENS, WORDS[:, :4], CHOICE)
    assert bridge(join="add").forward(TOKENS, WORDS[:, :5], CHOICE)[0].shape == (BATCH, 2, 5, CHANNELS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"recap": "windows"}, "unknown recap `windows`: choose class, random, window, all or text"),
        ({"join": "sum"}, "unknown text join `sum`: choose add, mean, concat, broadcast or none"),
        ({"recap": "window"}, "the `window` recap needs a window"),
        ({"recap": "class", "number": 4}, "the projector gives 10 features, which 4 tokens do not share"),
        ({"recap": "window", "number": 0}, "a window of 0 tokens: it must be at least 1"),
        ({"recap": "window", "number": -4}, "a window of -4 tokens"),
        ({"norm": (None, None, -1.0)}, "eps of the norm is -1"),
        ({"norm": (None, None, float("nan"))}, "eps of the norm is NaN"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        bridge(**changes)


def test_a_window_wider_than_the_image() -> None:
    with pytest.raises(ConfigError, match="a window of 10 tokens, but the tower gives 9 patches"):
        bridge(recap="window", number=10).forward(TOKENS, WORDS)
    assert bridge(recap="window", number=9).forward(TOKENS, WORDS)[0].shape == (BATCH, 1, 2, CHANNELS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"norm": (f64(15), None, 1e-5)}, r"`norm.weight` has shape \[15\], expected \[16\]"),
        ({"norm": (None, f64(16, 1), 1e-5)}, r"`norm.bias` has shape \[16, 1\], expected \[16\]"),
        ({"proj": (f64(16), False)}, r"`proj` has shape \[16\], expected \(W, D\)"),
        ({"proj": (f64(16), True)}, r"`proj` has shape \[16\], expected \(D, W\)"),
        (
            {"proj": (f64(16, 13), False)},
            r"`projector.weight` takes 12 features, but `proj` has shape \[16, 13\] and gives 13",
        ),
        ({"projector": {"bias": f64(10)}}, "`projector.weight` is missing"),
        ({"projector": {"weight": f64(10)}}, r"`projector.weight` has shape \[10\], expected \(C, D\)"),
        ({"projector": {"weight": f64(0, 12)}}, r"`projector.weight` has shape \[0, 12\]"),
        (
            {"projector": {"weight": f64(10, 12), "bias": f64(9)}},
            r"`projector.bias` has shape \[9\], expected \[10\]",
        ),
        ({"projector": {"weight": f64(10, 12), "gain": f64(9)}}, r"`projector.gain` of shape \[9\]"),
        *(
            ({"projector": {k: v for k, v in mlp().items() if k != key}}, f"`projector.{key}` is missing")
            for key in mlp()
        ),
        ({"projector": mlp(**{"4.weight": f64(3)})}, r"`projector.4.weight` of shape \[3\] is unexpected"),
        ({"projector": mlp(weight=f64(3))}, r"`projector.weight` of shape \[3\] is unexpected"),
        ({"projector": mlp(**{"0.weight": f64(9)})}, r"`projector.0.weight` has shape \[9\], .* \[12\]"),
        ({"projector": mlp(**{"0.bias": f64(11)})}, r"`projector.0.bias` has shape \[11\], expected \[12\]"),
        ({"projector": mlp(**{"1.bias": f64(11)})}, r"`projector.1.bias` has shape \[11\], expected \[14\]"),
        (
            {"projector": mlp(**{"3.weight": f64(10, 13)})},
            r"`projector.3.weight` has shape \[10, 13\], expected \[10, 14\]",
        ),
        ({"projector": mlp(**{"3.bias": f64(11)})}, r"`projector.3.bias` has shape \[11\], expected \[10\]"),
        (
            {"projector": mlp(**{"1.weight": f64(14, 11), "0.weight": f64(11), "0.bias": f64(11)})},
            r"`projector.0.weight` takes 11 features, but `proj` has shape \[16, 12\] and gives 12",
        ),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WeightsError, match=match):
        bridge(**changes)


def test_parameters_of_two_dtypes_or_devices() -> None:
    with pytest.raises(ShapeError, match=r"`projector\.weight` is Float, expected Double as `norm\.weight`"):
        bridge(projector={"weight": f64(10, 12).float()})
    with pytest.raises(ShapeError, match=r"`projector\.weight` is Int64, expected a floating-point dtype"):
        bridge(norm=None, proj=None, projector={"weight": f64(10, 12).long()})
    with pytest.raises(DeviceError, match=r"`proj` is on meta or mps but `norm\.weight` is on cpu"):
        bridge(proj=(f64(16, 12).to("meta"), False))


def test_a_gradient_that_is_not_the_conditions() -> None:
    mine = bridge()
    condition, tape = mine.forward(TOKENS, WORDS, CHOICE)
    with pytest.raises(ShapeError, match=r"`grad` has shape \[3, 2, 4, 10\], expected \[3, 2, 5, 10\]"):
        mine.backward(tape, condition[:, :, 1:])
    with pytest.raises(ShapeError, match="`grad` is Int64"):
        mine.backward(tape, condition.long())
    with pytest.raises(DeviceError, match="`grad` is on"):
        mine.backward(tape, condition.to("meta"))
    narrow = {"weight": f64(9, 12), "bias": f64(9)}
    for other in (bridge(join="none"), bridge(projector=narrow), bridge(projector=mlp())):
        with pytest.raises(ConfigError, match="recorded by another bridge"):
            other.backward(tape, condition)


@pytest.mark.parametrize("missing", [None, 3, [[1.0]]])
def test_what_is_not_a_tensor_is_a_type_error(missing: Any) -> None:
    with pytest.raises(TypeError):
        bridge().forward(missing, WORDS, CHOICE)
