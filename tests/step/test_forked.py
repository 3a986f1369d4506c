"""Forked processes: they have none of their parent's threads, and what they compute waits for none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.hostile

# In each child: draws and a kernel of the native schedule, beside what the parent finds before and after.
PROGRAM = """
import multiprocessing, sys
import torch
import diva_rs
from builders.small import images, small_clip, small_teacher

torch.set_num_threads(2)
torch.rand(8, 256, 256).exp().sum()  # PyTorch's own threads start; its operations on few numbers need none
rows = torch.rand(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
teacher = small_teacher()
teacher.schedule.add_noise(rows, rows, torch.tensor([1, 2, 3, 4]))  # makes its tables

def numbers():
    draws = diva_rs.draw(0, range(8), 4, (4, 64, 64), 256, 76)
    noisy, *_ = teacher.schedule.add_noise(rows, rows, torch.tensor([1, 2, 3, 4]))
    return float(draws.noise.sum()), int(draws.tokens.sum()), float(noisy[3, 3, 7, 7])

class Drawing(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(numbers())

def child():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(numbers()), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0, "the forked process hangs"
    return queue.get()

first = child()  # before the parent has drawn
assert numbers() == first == child()
trainer = diva_rs.Trainer(small_clip(), teacher, diva_rs.Recipe(draws=2))
trainer.step(images(4))
loader = torch.utils.data.DataLoader(Drawing(), num_workers=2, multiprocessing_context="fork", timeout=60)
assert all(row[0].tolist() == torch.tensor(first).tolist() for row in loader)
trainer.step(images(4))
assert child() == first == numbers()
"""


def test_a_forked_process_draws_and_computes():
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
