"""What examples in docstrings call `clip`, `unet`, `teacher`, `result`, `preprocess` and `tokenizer`."""

import diffusers
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

import diva_rs
from builders.texts import tokenize


def clip():
    """An open_clip ViT at 32 pixels."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)


def preprocess():
    return image_transform_v2(PreprocessCfg(size=32), is_train=False)


def tokenizer():
    return tokenize


def unet():
    """In pixel space, at 16 pixels."""
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=24,
    )


def teacher():
    return diva_rs.Teacher(unet(), scheduler=diffusers.DDPMScheduler(), text_condition=torch.randn(1, 8, 24))


def result():
    """Of a run of two steps."""
    loader = [torch.rand(2, 3, 32, 32) for _ in range(2)]
    return diva_rs.post_train(clip(), teacher(), loader, progress=False, log_every=1)
