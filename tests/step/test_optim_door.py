"""What Python sees of the native optimizer besides its numbers: its representation and its examples."""

import doctest

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


def test_examples_of_the_docstrings_run():
    documented = [_native.Optimizer, _native.lr_factor]
    documented += [
        getattr(_native.Optimizer, name) for name in vars(_native.Optimizer) if not name.startswith("_")
    ]
    assert len(documented) == 10
    for entry in documented:
        test = doctest.DocTestParser().get_doctest(entry.__doc__, {}, entry.__name__, None, None)
        assert test.examples, entry.__name__
        assert doctest.DocTestRunner().run(test).failed == 0, entry.__name__
