"""The GIL is free during a step, and Ctrl-C ends a run cleanly."""

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch

import diva_rs
from builders.small import images, small_clip, small_teacher
from diva_rs import Recipe, Trainer
from diva_rs._base.checkpoint import load_state


def test_another_thread_runs_during_the_native_parts_of_a_step():
    """Time windows: a Python thread notes the clock while one backward pass, entered once, is under way."""
    from diva_rs import _native

    torch.manual_seed(0)
    projector = {"weight": torch.randn(512, 512), "bias": torch.randn(512)}
    bridge = _native.Bridge(None, None, projector, "all", None, "none")
    tokens, text = torch.randn(64, 257, 512), torch.randn(1, 1, 512)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        # A busy machine may delay the thread, so there are several tries; with the GIL held, all fail.
        assert any(ticked_in_the_middle(bridge, tokens, text, ticks) for _ in range(10))
    finally:
        stop.set()
        thread.join()


def ticked_in_the_middle(bridge: Any, tokens: torch.Tensor, text: torch.Tensor, ticks: list) -> bool:
    """Whether the thread read the clock strictly inside the backward pass, not at its edges."""
    condition, tape = bridge.forward(tokens, text)
    gradient = torch.ones_like(condition)
    began = time.perf_counter()
    bridge.backward(tape, gradient)
    ended = time.perf_counter()
    middle = (began + 0.2 * (ended - began), began + 0.8 * (ended - began))
    return sum(middle[0] < moment < middle[1] for moment in ticks) >= 3


def test_another_thread_runs_during_the_whole_native_step():
    """From images to updated weights in one call: a Python thread notes the clock in every quarter of it.

    A busy machine may keep that thread waiting, so there are several goes; with the GIL held none would do.
    """
    recipe = Recipe(backend="native", optimizer="adamw", latent="sample", draws=3)
    trainer = Trainer(small_clip(), small_teacher(), recipe)
    batch = torch.rand(96, 3, 64, 64)
    trainer.step(batch)
    native, window = trainer.step_modules.step, []
    ticks, stop = [], threading.Event()

    class Watched:
        def changed_limit(self):
            return None

        def train(self, *arguments):
            began = time.perf_counter()
            losses = native.train(*arguments)
            window[:] = began, time.perf_counter()
            return losses

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    trainer.step_modules.step = Watched()
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        assert any(ticked_in_every_quarter(trainer, batch, window, ticks) for _ in range(10))
    finally:
        stop.set()
        thread.join()


def ticked_in_every_quarter(trainer: Trainer, batch: torch.Tensor, window: list, ticks: list) -> bool:
    ticks.clear()
    trainer.step(batch)
    began, ended = window
    quarter = (ended - began) / 4
    return all(any(0 <= moment - began - part * quarter < quarter for moment in ticks) for part in range(4))


@pytest.mark.timeout(60)
def test_ctrl_c_between_micro_batches_ends_the_step_and_leaves_no_gradient(ctrl_c):
    teacher = small_teacher()
    trainer = Trainer(small_clip(), teacher, Recipe(backend="torch", micro_batch=1, draws=1))
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters().items()}
    seen = []

    def press(*_):
        seen.append(1)
        if len(seen) == 2:
            ctrl_c()

    hook = trainer.teacher.unet.register_forward_pre_hook(press)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(images(6))
    assert 2 <= len(seen) < 6
    assert trainer.pending == 0 and trainer.steps_done == 0
    for name, parameter in trainer.parameters().items():
        assert parameter.grad is None and torch.equal(parameter, before[name])
    hook.remove()
    trainer.step(images(6))
    assert trainer.steps_done == 1


@pytest.mark.timeout(60)
def test_ctrl_c_is_noticed_between_native_micro_batches(ctrl_c):
    """Nothing of the step is Python: the signal waits in the interpreter until the step looks for it."""
    trainer = Trainer(small_clip(), small_teacher(), Recipe(backend="native", micro_batch=1))
    batch = trainer.step_modules.batch(images(64), None, 0, None, 0)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):
            trainer.step_modules.step.train(
                trainer.step_modules.reader.native, batch, trainer._stages.optimizer
            )
    timer.join()


def test_ctrl_c_during_the_update_waits_until_weights_and_count_agree(ctrl_c):
    trainer = Trainer(small_clip(), small_teacher(), Recipe(backend="native"))
    native = trainer.step_modules.step

    class Pressed:
        def changed_limit(self):
            return None

        def train(self, *arguments):
            *rest, hold = arguments

            def press():
                hold()
                ctrl_c()  # all gradients are there, no weight has moved

            return native.train(*rest, press)

    before = trainer.projector.weight.detach().clone()
    trainer.step_modules.step = Pressed()
    with pytest.raises(KeyboardInterrupt):
        trainer.step(images(2))
    assert trainer.steps_done == 1 and trainer.pending == 0
    assert not torch.equal(trainer.projector.weight, before)
    trainer.step_modules.step = native
    trainer.step(images(2))


@pytest.mark.timeout(60)
def test_ctrl_c_ends_a_run_cleanly_with_a_checkpoint(tmp_path, caplog, ctrl_c):
    clip = small_clip()

    def press(step, metrics):
        if step == 3:
            ctrl_c()

    loader = [images(4, seed=n) for n in range(4)]
    result = diva_rs.post_train(
        clip,
        small_teacher(),
        loader,
        steps=500,
        lr=1e-3,
        log_every=1,
        output_dir=tmp_path,
        callbacks=[press],
        progress=False,
    )
    assert result.interrupted
    assert 3 <= result.report["steps"] < 500
    assert "checkpoint" in caplog.text
    assert all(parameter.grad is None for parameter in clip.visual.parameters())
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    state = load_state(checkpoint)
    resumed = Trainer(small_clip(seed=7), small_teacher(), Recipe.from_dict(state["recipe"]))
    resumed.load_state_dict(state)
    assert resumed.steps_done == result.report["steps"]
    assert torch.equal(resumed.clip.visual.proj, clip.visual.proj)


def test_an_exception_inside_the_teacher_comes_back_unchanged_and_leaves_no_gradient():
    teacher = small_teacher()
    trainer = Trainer(small_clip(), teacher, Recipe(backend="torch"))

    class Trouble(RuntimeError):
        pass

    def fail(*_):
        raise Trouble("from the middle of the UNet")

    hook = trainer.teacher.unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(Trouble, match="middle of the UNet"):
        trainer.accumulate(images(2))
    assert trainer.pending == 0
    assert all(parameter.grad is None for parameter in trainer.parameters().values())
    hook.remove()
    trainer.step(images(2))
