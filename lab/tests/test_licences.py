"""The licences of what a user of the wheel gets."""

import pytest

from lab import licences


@pytest.mark.parametrize(
    ("expression", "refused"),
    [
        ("MIT", False),
        ("Apache-2.0 / MIT", False),
        ("GPL-3.0-only OR MIT", False),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", False),
        ("Apache-2.0 WITH LLVM-exception", False),
        ("GPL-3.0-only", True),
        ("MIT AND GPL-2.0-only", True),
        ("none", True),
    ],
)
def test_an_expression(expression, refused):
    assert licences.refused(expression) is refused


def test_every_library_has_one_that_suits():
    found = licences.libraries()
    assert len(found) > 20 and {"torch", "numpy", "pydantic"} <= found.keys()
    assert licences.libraries("no-such-library") == {}
    others = {name: told for name, told in found.items() if licences.refused(told)}
    assert all(name.startswith(("nvidia-", "cuda-")) for name in others), others


def test_every_crate_has_one_that_suits():
    found = licences.crates()
    assert {"pyo3", "tch", "serde"} <= found.keys()
    assert not {name: told for name, told in found.items() if licences.refused(told)}
