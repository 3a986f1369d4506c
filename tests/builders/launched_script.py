"""A script as a user would write it, without a word of ranks: `python launched_script.py FOLDER`."""

import sys

import torch

import diva_rs
from builders.rank_runs import RUN, loader
from builders.small import small_clip, small_teacher

if __name__ == "__main__":  # pytest imports whatever may hold doctests
    clip, unet = small_clip(torch.float64), small_teacher(torch.float64)
    diva_rs.post_train(clip, unet, loader(), output_dir=sys.argv[1], **{**RUN, "steps": 5})
    print("the script goes on")
