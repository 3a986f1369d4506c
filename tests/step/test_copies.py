"""Copies of a FeedbackLoss and a teacher, as averaging, EMA helpers and worker processes make them."""

import copy
import io
import pickle

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from builders.small import images, small_clip, small_teacher, worst
from diva_rs import FeedbackLoss, Recipe, Trainer
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError

FIELDS = {"draws": 2, "density": 0.5, "anchor": 0.5}


def trained(**fields):
    """A FeedbackLoss after one update, with the gradients of a second batch."""
    terms = {"near": (0.5, lambda view: (view.pooled - view.original).square().mean())}
    feedback = FeedbackLoss(small_clip(), small_teacher(), Recipe(**{**FIELDS, **fields}), terms)
    optimizer = torch.optim.SGD(feedback.trained_parameters(), lr=0.1)
    feedback(images(2), ids=[1, 2]).backward()
    optimizer.step()
    optimizer.zero_grad()
    return feedback


def backward(feedback):
    loss = feedback(images(4), ids=range(4))
    loss.backward()
    return float(loss.detach())


def gradients(feedback):
    return {name: p.grad.clone() for name, p in feedback.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fields", [{}, {"backend": "torch", "projector": "mlp"}], ids=["native", "torch"])
def test_a_copy_computes_the_same_on_its_own_parameters(fields):
    feedback = trained(**fields)
    other = copy.deepcopy(feedback)
    assert not {id(p) for p in feedback.parameters()} & {id(p) for p in other.parameters()}
    assert other.step_modules.teacher is feedback.step_modules.teacher
    loss = backward(other)
    assert gradients(feedback) == {}
    found = gradients(other)
    assert backward(feedback) == loss  # the anchor holds both to the model before the update
    assert worst(found, gradients(feedback)) == 0
    for parameter in other.trained_parameters():
        parameter.data.zero_()
    feedback.zero_grad()
    assert backward(feedback) == loss


def test_an_averaged_model_has_the_loss_of_the_averaged_weights():
    feedback = trained()
    averaged = AveragedModel(feedback)
    averaged.update_parameters(feedback)
    before = {name: p.detach().clone() for name, p in feedback.named_parameters()}
    with torch.no_grad():
        for parameter in feedback.parameters():
            parameter.mul_(1.1)
    averaged.update_parameters(feedback)
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), 1.05 * before[name])
    with torch.no_grad():
        for parameter in feedback.parameters():
            parameter.mul_(1.05 / 1.1)
        losses = [float(model(images(4), ids=range(4))) for model in (averaged, feedback)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_not_copied_says_what_to_copy_and_save_instead():
    with pytest.raises(ConfigError, match=r"save feedback.state_dict\(\)"):
        torch.save(trained(), io.BytesIO())
    for make in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match=r"trainer.clip.*trainer.state_dict\(\)"):
            make(Trainer(small_clip(), small_teacher()))
    denoiser = {"train": ("projector", "denoiser"), "lr": 1e-4, "steps": 1}
    with pytest.raises(ConfigError, match="the denoiser trains in place"):
        copy.deepcopy(FeedbackLoss(small_clip(), small_teacher(), Recipe(stages=(denoiser,))))


@pytest.mark.parametrize("used", [False, True])
def test_a_teacher_travels_to_a_worker_process_and_back(used):
    teacher = small_teacher()
    if used:
        Trainer(small_clip(), teacher).step(images(2))
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.randn(2, 7, 24)
    for other in (pickle.loads(pickle.dumps(teacher)), copy.deepcopy(teacher)):
        assert other.denoiser is not teacher.denoiser
        assert torch.equal(other.denoise(*inputs), teacher.denoise(*inputs))
        assert torch.equal(other.text(), teacher.text()) and len(other.schedule) == len(teacher.schedule)


def test_a_copied_tower_reads_the_copied_module():
    tower = adapt(small_clip())
    other = copy.deepcopy(tower)
    tokens = tower.tokens(images(2))
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.zero_()
    assert torch.equal(tower.tokens(images(2)), tokens) and not torch.equal(other.tokens(images(2)), tokens)
