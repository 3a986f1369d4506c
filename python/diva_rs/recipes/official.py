"""What all ``diva-official-…`` presets share: what the official code (github.com/baaivision/DIVA) computes.

Its quirks are part of it, for people who compare: draw 1 weighs five times draw 2 (only the last draw's loss
passes through the trainer, which divides by the 5 accumulated batches); every family's pixels are normalised
with OpenAI's mean and std; the VAE's input is un-normalised with ImageNet's instead, which costs contrast.

Two of its properties are not reproduced: all ranks share one seed there, so that noise, timesteps and token
choices repeat on each of the 8 GPUs; and the very numbers that its generator drew.
"""

from diva_rs.recipes.preset import Values

OFFICIAL: Values = {
    "prompt": ("a photo of a .", "models/utils.py: the template around an empty class name, padded to 77"),
    "projector": ("linear", "models/SD_with_*.py: visual_proj"),
    "draws": (2, "DIVA_for_*.sh: --train_steps 2"),
    "draw_weights": ((5.0, 1.0), "models/SD_with_*.py: draw 1 calls backward() itself, undivided by 5"),
    "timesteps": ("uniform", "models/utils.py: randint over 1000, per sample"),
    "loss": ("mse", "config.py: loss = 'mse', on the noise"),
    "optimizer": ("sgd", "run_DIVA_with_*.py"),
    "lr": (1e-4, "DIVA_for_*.sh: --learning_rate 1e-4"),
    "momentum": (0.9, "config.py: optimizer_momentum"),
    "weight_decay": (0.0, "DIVA_for_*.sh: --weight_decay 0"),
    "grad_clip": (1.0, "default of transformers' TrainingArguments"),
    "schedule": ("cosine", "DIVA_for_*.sh: --lr_scheduler_type cosine"),
    "warmup": (23, "DIVA_for_*.sh: --warmup_ratio 0.005 of 4,600 steps"),
    "steps": (4600, "DIVA_for_*.sh: num_steps=4600"),
    "batch": (640, "DIVA_for_*.sh: 8 GPUs x 16 images x 5 accumulated batches"),
    "precision": ("bf16", "DIVA_for_*.sh: --bf16, autocast over float32 weights"),
    "vae_pixels": ("official", "config.py: un-normalised with ImageNet's mean and std"),
    "clip_mean": ((0.48145466, 0.4578275, 0.40821073), "data/constants.py: OpenAI's, for every family"),
    "clip_std": ((0.26862954, 0.26130258, 0.27577711), "data/constants.py: OpenAI's, for every family"),
    "resize": ("bilinear", "models/SD_with_*.py: transforms.Resize of the 512-pixel tensor"),
    "antialias": (False, "requirements.txt: the default of torchvision 0.15.1 for a tensor"),
    "image_size": (512, "DIVA_for_*.sh: --image_size 512"),
    "latent": ("mean", "models/SD_with_*.py: latent_dist.mean"),
    "seed": (42, "DIVA_for_*.sh: --seed 42"),
}
