"""What the tests of runs share."""

import pytest

from builders.small import images, small_teacher


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


@pytest.fixture(scope="module")
def three():
    """A loader of three batches of four."""
    return [images(4, seed=n) for n in range(3)]
