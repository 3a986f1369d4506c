"""What all ``diva-…`` presets share: the method as the paper (arXiv 2407.20171) has it, on correct pixels.

The paper's hardware: 8 A100-80G, about 66 GPU-hours, on the images of CC3M, with SD-2-1-base as the teacher.
What it does not say stays at diva_rs's defaults: the model's own mean and std, VAE pixels in [-1, 1], equal
draw weights, fp32.
"""

from diva_rs.recipes.preset import Values

PAPER: Values = {
    "prompt": ("", "paper: the empty text's embedding joins the visual tokens"),
    # The paper does not say how the text joins; its code takes the mean wherever there are not 77 tokens.
    "text": ("mean", "official code, models/SD_with_{MetaCLIP,DFN,SigLIP}.py"),
    "replacement": (False, "paper: a random part of the local tokens"),
    "projector": ("linear", "official code, models/SD_with_*.py: one Linear"),
    "draws": (2, "paper: N = 2 random diffusion states per image"),
    "timesteps": ("uniform", "paper: t drawn uniformly"),
    "loss": ("mse", "paper: error of the predicted noise"),
    "optimizer": ("sgd", "paper: SGD"),
    "lr": (1e-4, "paper: 1e-4"),
    "momentum": (0.9, "paper: 0.9"),
    "grad_clip": (1.0, "official code: default of transformers' TrainingArguments"),
    "schedule": ("cosine", "paper: cosine"),
    "steps": (4600, "paper: 4,600 steps"),
    "batch": (640, "paper: 640 images"),
}
