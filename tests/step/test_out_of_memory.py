"""A denoiser without memory for all its images: fewer at a time, the same gradient, and a word about it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diva_rs
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import Recipe, Trainer

TESTS = Path(__file__).parents[1]
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


class Small:
    """A hook on a denoiser that has memory for so many images."""

    def __init__(self, most, error=CUDA):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, module, inputs):
        self.sizes.append(len(inputs[0]))
        if len(inputs[0]) > self.most:
            raise self.error


def trainer_of(small=None, **fields):
    teacher = small_teacher(torch.float64)
    if small is not None:
        teacher.unet.register_forward_pre_hook(small)  # which also makes it run through its module
    return Trainer(small_clip(torch.float64), teacher, Recipe(precision="fp64", backend="auto", **fields))


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "diva_rs"]


def check_the_same(trainer, loss, whole, expected):
    assert abs(float(loss - expected)) <= 1e-12
    assert worst(gradients(trainer), gradients(whole)) <= 1e-10


@pytest.mark.parametrize(
    "fields",
    [
        {"condition": "random"},
        {"condition": "class"},
        {"condition": "random", "text": "concat", "min_snr": 5.0, "anchor": 0.1},
        {"condition": "text", "anchor": 0.1},
    ],
    ids=["random", "class", "concat", "text"],
)
@pytest.mark.parametrize(("most", "limit", "error"), [(11, 6, CUDA), (5, 6, CPU), (3, 2, CPU), (1, 1, CUDA)])
def test_fewer_images_and_the_same_gradient(fields, most, limit, error, caplog):
    fields = {
        "draws": 3,
        "denoiser_batch": 12,
        "draw_weights": (0.5, 0.3, 0.2),
        "condition": "random",
    } | fields
    batch = images(4, dtype=torch.float64)
    whole, small = trainer_of(**fields), Small(most, error)
    trainer = trainer_of(small, **fields)
    expected = whole.accumulate(batch)
    with caplog.at_level(logging.WARNING, "diva_rs"):
        loss = trainer.accumulate(batch)
    check_the_same(trainer, loss, whole, expected)
    [message] = said(caplog)
    assert trainer.step_modules.step.denoiser_limit == limit
    assert f"it sees at most {limit} image" in message and f"denoiser_batch={limit} " in message
    tried = len(small.sizes)
    trainer.accumulate(batch)  # what did not fit is not tried again, nor said
    assert max(small.sizes[tried:]) <= limit and len(said(caplog)) == 1
    assert whole.step_modules.step.denoiser_limit is None


@pytest.mark.parametrize("draws", range(1, 6))
def test_every_number_of_draws(draws):
    batch, fields = images(3, dtype=torch.float64), {"draws": draws, "denoiser_batch": 3 * draws}
    whole = trainer_of(**fields)
    expected = whole.accumulate(batch)
    for most in {1, 2, 3 * draws - 1}:
        trainer = trainer_of(Small(most), **fields)
        check_the_same(trainer, trainer.accumulate(batch), whole, expected)


@pytest.mark.parametrize(
    ("batch", "side", "draws", "sizes"),
    [(4, 8, 3, [12]), (1, 32, 5, [4, 1]), (1, 64, 2, [1, 1]), (3, 32, 2, [3, 3])],
)
def test_small_latents_take_their_draws_together_by_default(batch, side, draws, sizes):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, side, side, generator=generator, dtype=torch.float64)
    given = {"images": images(batch, dtype=torch.float64), "latents": latents}
    one, small = trainer_of(draws=draws, denoiser_batch=batch), Small(100)
    trainer = trainer_of(small, draws=draws)
    check_the_same(trainer, trainer.accumulate(given), one, one.accumulate(given))
    assert small.sizes == sizes


def test_one_draw_at_a_time_and_micro_batches():
    batch = images(4, dtype=torch.float64)
    for fields in ({"draws": 2, "denoiser_batch": 4}, {"draws": 2, "micro_batch": 3, "denoiser_batch": 3}):
        whole, small = trainer_of(**fields), Small(2)
        trainer = trainer_of(small, **fields)
        check_the_same(trainer, trainer.accumulate(batch), whole, whole.accumulate(batch))


def test_the_loss_module_too(caplog):
    def run(small=None):
        teacher = small_teacher(torch.float64)
        if small is not None:
            teacher.unet.register_forward_pre_hook(small)
        clip = small_clip(torch.float64)
        feedback = diva_rs.FeedbackLoss(clip, teacher, Recipe(precision="fp64", draws=2, denoiser_batch=8))
        loss = feedback(images(4, dtype=torch.float64))
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in clip.visual.named_parameters() if p.grad is not None}

    (expected, theirs), (loss, ours) = run(), run(Small(3))
    assert abs(float(loss - expected)) <= 1e-12 and worst(ours, theirs) <= 1e-10
    [message] = said(caplog)
    assert "at most 2 images" in message


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
def test_when_a_single_image_does_not_fit_the_error_is_the_callers(error):
    trainer = trainer_of(Small(0, error), draws=2, denoiser_batch=8)
    with pytest.raises(type(error), match=r"out of memory|can't allocate"):
        trainer.accumulate(images(4, dtype=torch.float64))
    assert trainer.pending == 0 and all(value.grad is None for value in trainer.parameters().values())


def test_other_errors_are_not_tried_again():
    small = Small(0, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        trainer_of(small, draws=2, denoiser_batch=8).accumulate(images(4, dtype=torch.float64))
    assert small.sizes == [8]


NATIVE = """
import json, logging, re, resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from builders.small import *
from diva_rs import Recipe, Teacher, Trainer

fields = json.loads({fields!r})
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("diva_rs").addHandler(handler)

def size(name):
    return int(re.search(rf"{{name}}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def run():
    text = torch.randn(4, 16, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    unet = small_unet(torch.float64)
    teacher = Teacher(unet, scheduler=scheduler(), text_condition=text)
    trainer = Trainer(small_clip(torch.float64), teacher, Recipe(precision="fp64", pixels="unit", **fields))
    latents = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    loss = trainer.accumulate({{"images": images(4, dtype=torch.float64), "latents": latents}})
    assert trainer.backend["denoiser"] == "native", trainer.backend
    return loss, gradients(trainer), trainer.step_modules.step.denoiser_limit

expected, theirs, limit = run()
assert limit is None and not messages
resting = size("VmSize")
room = int({share} * (size("VmPeak") - resting))
resource.setrlimit(resource.RLIMIT_AS, (resting + room, resource.RLIM_INFINITY))
loss, ours, limit = run()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert abs(float(loss - expected)) <= 1e-12, (loss, expected)
assert worst(ours, theirs) <= 1e-10, worst(ours, theirs)
print(json.dumps([limit, messages, room]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on a process's memory")
@pytest.mark.slow
@pytest.mark.parametrize(("share", "checkpoint"), [(0.6, False), (0.3, True)])
def test_a_native_denoiser_in_a_process_without_memory(share, checkpoint):
    """The kernel refuses what is beyond a share of the memory that the whole batch took."""
    fields = {"draws": 2, "denoiser_batch": 8, "condition": "random", "text": "concat"}
    fields |= {"density": 0.5, "denoiser_checkpointing": checkpoint}
    script = NATIVE.format(tests=str(TESTS), fields=json.dumps(fields), share=share)
    # Large blocks come and go with the tensors, and small ones never have to wait for the kernel.
    alone = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": str(1 << 25), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **alone, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    limit, [message], _ = json.loads(done.stdout)
    assert limit in (1, 2, 4) and f"at most {limit} image" in message
