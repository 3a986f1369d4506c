"""What Python sees of the native optimizer besides its numbers: its representation and its examples."""

import doctest
import operator

import pytest
import torch

from diva_rs import _native


def test_the_representation_names_method_and_groups():
    weight, head = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = _native.Optimizer(
        "sgd", [("clip", 0.01, 0.0, {"w": weight}), ("projector", 0.03, 0.0, {"h": head})], momentum=0.5
    )
    assert repr(optimizer) == (
        "Optimizer(Sgd { momentum: 0.5 }, clip: 1 parameters at lr 0.01, projector: 1 parameters at lr 0.03)"
    )


@pytest.mark.parametrize(
    "name", ["Optimizer", "Optimizer.regroup", "Optimizer.step", "Optimizer.update", "lr_factor"]
)
def test_examples_of_the_docstrings_run(name):
    entry = operator.attrgetter(name)(_native)
    test = doctest.DocTestParser().get_doctest(entry.__doc__, {}, name, None, None)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
