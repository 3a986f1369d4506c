"""A script as a user would write it: `python launched_script.py FOLDER [killed]`.

With "killed", rank 1 is killed in step 3 of its first start; torchrun then starts all ranks again.
"""

import os
import signal
import sys

import torch

import diva_rs
from builders.rank_train import RUN, Counted, loader
from builders.small import small_clip, small_teacher

if __name__ == "__main__":  # pytest imports whatever may hold doctests
    dies = sys.argv[2:] == ["killed"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    images = Counted(15, lambda: os.kill(os.getpid(), signal.SIGKILL)) if dies else None
    clip, unet = small_clip(torch.float64), small_teacher(torch.float64)
    fields = {**RUN, "steps": 5, "checkpoint_every": 1}
    diva_rs.post_train(clip, unet, loader(data=images), output_dir=sys.argv[1], **fields)
    print("the script goes on")
