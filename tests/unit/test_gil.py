"""The GIL is free during a step, and Ctrl-C ends a run cleanly."""

import os
import signal
import threading
import time

import pytest
import torch

import diva_rs
from builders.small import images, small_clip, small_teacher
from diva_rs import Recipe, Trainer
from diva_rs.checkpoint import load_state


def test_another_thread_runs_during_the_native_parts_of_a_step():
    """Time windows: a Python thread notes the clock while one backward pass, entered once, is under way."""
    from diva_rs import _native

    torch.manual_seed(0)
    projector = {"weight": torch.randn(512, 512), "bias": torch.randn(512)}
    bridge = _native.Bridge(None, None, projector, "all", None, "none")
    tokens, text = torch.randn(64, 257, 512), torch.randn(1, 1, 512)
    condition, tape = bridge.forward(tokens, text)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        time.sleep(0.02)
        began = time.perf_counter()
        bridge.backward(tape, torch.ones_like(condition))
        ended = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    inside = [moment for moment in ticks if began < moment < ended]
    assert ended - began > 0.01, "too short to tell"
    # Strictly inside the call, not at its edges: the GIL was free in the middle.
    middle = [m for m in inside if began + 0.2 * (ended - began) < m < began + 0.8 * (ended - began)]
    assert len(middle) >= 3


@pytest.mark.timeout(60)
def test_ctrl_c_ends_a_run_cleanly_with_a_checkpoint(tmp_path, caplog):
    clip = small_clip()

    def press(step, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

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
