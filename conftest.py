"""What the examples in docstrings may use: a tiny `clip` with its `preprocess` and `tokenizer`, a `teacher`,
the `result` of a short run, and small folders of the benchmarks."""

import importlib
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes side by side share the cores; torch reads this once, when it is imported.
    _share = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_share, 1)))

import torch
from _pytest.doctest import DoctestItem

# Small folders of the benchmarks, by the module under tests/ that writes them.
_FOLDERS = {
    "mmvp_folder": "builders.mmvp",
    "shapes_folder": "builders.benchmarks",
    "captions_folder": "builders.benchmarks",
    "photos_folder": "builders.benchmarks",
}


@pytest.fixture(autouse=True)
def _names_for_examples(request, doctest_namespace):
    if not isinstance(request.node, DoctestItem):
        return
    import diva_rs

    torch.manual_seed(0)
    lazy = _Examples()
    doctest_namespace.update(torch=torch, diva_rs=diva_rs)
    # Building models costs time that most examples do not need: only the names that an example mentions.
    text = "".join(example.source for example in request.node.dtest.examples)
    for name in ("clip", "teacher", "unet", "result", "preprocess", "tokenizer"):
        if name in text:
            doctest_namespace[name] = getattr(lazy, name)()
    for name, builder in _FOLDERS.items():
        if name in text:
            make = getattr(importlib.import_module(builder), name)
            doctest_namespace[name] = make(request.getfixturevalue("tmp_path"))
    for name in ("Recipe", "Trainer", "FeedbackLoss", "Teacher", "post_train", "draw", "Draws"):
        doctest_namespace[name] = getattr(diva_rs, name)


class _Examples:
    """Tiny models: an open_clip ViT at 32 pixels and a pixel-space UNet."""

    def clip(self):
        import open_clip

        vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
        text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
        return open_clip.model.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)

    def preprocess(self):
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(size=32), is_train=False)

    def tokenizer(self):
        from builders.texts import tokenize

        return tokenize

    def unet(self):
        import diffusers

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

    def teacher(self):
        import diffusers

        import diva_rs

        return diva_rs.Teacher(
            self.unet(), scheduler=diffusers.DDPMScheduler(), text_condition=torch.randn(1, 8, 24)
        )

    def result(self):
        import diva_rs

        loader = [torch.rand(2, 3, 32, 32) for _ in range(2)]
        return diva_rs.post_train(self.clip(), self.teacher(), loader, progress=False, log_every=1)
