"""Two ranks under DistributedDataParallel are one process with the larger batch; each draws for itself."""

import pytest
import torch

from builders.rank import batch_of, feedback_loss, gradients
from builders.run_ranks import Runs
from builders.small import worst


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo ranks saw."""
    return Runs(tmp_path_factory.mktemp("ranks"), "two_ranks-2").of("two_ranks-2")


def together(call=0):
    """Both ranks' batches in one, taking turns as the numbering of samples without ids does."""
    return torch.stack([batch_of(0, call), batch_of(1, call)], dim=1).flatten(0, 1)


def alone(batch, ids=None, **given):
    feedback = feedback_loss(**given)
    feedback(batch, ids=ids).backward()
    return gradients(feedback)


def test_the_ranks_draw_differently(ranks):
    first, second = (rank["noise"].flatten(0, 1) for rank in ranks)
    for row in first:
        assert not any(torch.equal(row, other) for other in second)


def test_uneven_batches_share_no_draw_either(ranks):
    rows = [row for rank in ranks for noise in rank["uneven"] for row in noise.flatten(0, 1)]
    assert len(rows) == 2 * (3 + 2 + 1 + 4)
    assert len({row.numpy().tobytes() for row in rows}) == len(rows)


def test_the_averaged_gradient_is_that_of_the_concatenated_batch(ranks):
    expected = alone(together())
    for rank in ranks:
        assert worst(rank["default ids"], expected) <= 1e-10
    feedback = feedback_loss()
    loss = float(feedback(together()).detach())
    assert abs(float(ranks[0]["loss"] + ranks[1]["loss"]) / 2 - loss) <= 1e-12


def test_the_same_of_a_low_rank_tower(ranks):
    expected = alone(together(), low_rank=True)
    assert sum(name.endswith("lora_A") for name in expected) == 13
    for rank in ranks:
        assert worst(rank["low rank"], expected) <= 1e-10


def test_the_same_with_ids_of_the_callers_own(ranks):
    batch = torch.cat([batch_of(0), batch_of(1)])
    names = [f"{rank}-{i}.jpg" for rank in range(2) for i in range(3)]
    expected = alone(batch, ids=names)
    for rank in ranks:
        assert worst(rank["own ids"], expected) <= 1e-10
    assert worst(ranks[0]["default ids"], expected) > 1e-3


def test_the_vision_model_alone_leaves_no_parameter_unused(ranks):
    feedback = feedback_loss(vision_only=True)
    feedback(together())
    feedback(together(1)).backward()
    expected = gradients(feedback)
    for rank in ranks:
        assert worst(rank["vision only"], expected) <= 1e-10
