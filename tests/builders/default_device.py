"""Readers, training and scores on the host, and then again under another default device: equal bits."""

import sys
from pathlib import Path

import torch
import torch._lazy.ts_backend
from open_clip.transform import image_transform

from builders.mmvp import mmvp_folder
from builders.pictures import encoded, write_tar
from builders.small import SIDE, small_clip, small_teacher
from builders.texts import tokenize
from diva_rs import FeedbackLoss, evaluation, post_train
from diva_rs.data import ImageLoader, LatentCache, Views, folder_loader, shard_loader

SCORED = image_transform(32, is_train=False), tokenize
SETTINGS = {"optimizer": "adamw", "lr": 1e-3, "progress": False, "checkpoint_every": 1}


class Made(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"images": torch.full((3, 4, 4), index / 2), "ids": index}


def batches(loader):
    return [{key: value.tolist() for key, value in batch.items()} for batch in loader]


def everything(root, device, models, teacher):
    folder = root / device
    loaders = {n: folder_loader(root / "photos", 2, SIDE, n, seed=3) for n in (0, 1)}
    yield [batches(loader) for loader in loaders.values()]
    yield [batches(shard_loader(root / "0.tar", 2, SIDE, n)) for n in (0, 1)]
    yield batches(ImageLoader(Made(), 2, 1))
    viewed = folder_loader(root / "photos", 2, SIDE, 1, views=Views(2, True))
    yield batches(LatentCache.build(viewed, teacher, folder / "latents").wrap(viewed))
    post_train(models.pop(), teacher, loaders[1], output_dir=folder / "run", steps=2, **SETTINGS)
    clip = models.pop()
    again = {**SETTINGS, "output_dir": folder / "run", "resume": "force"}
    result = post_train(clip, teacher, loaders[1], steps=4, **again)
    yield [row["loss"] for row in result.history]
    loss = FeedbackLoss(clip, teacher)
    loss(batch := next(iter(loaders[0]))["images"]).backward()
    loss.load_state_dict(loss.state_dict())
    gradients = {n: p.grad.tolist() for n, p in clip.named_parameters() if p.grad is not None}
    assert gradients
    yield gradients
    yield evaluation.zero_shot_folder(clip, *SCORED, root / "photos").counts
    yield evaluation.mmvp_vlm(clip, *SCORED, root / "mmvp").average
    yield str(evaluation.drift(models.pop(), clip, [batch]))


def main(root):
    for name in ("cat/0.png", "cat/1.png", "dog/2.png"):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(int(path.stem), kind="png"))
    write_tar(root / "0.tar", [(f"{i}.png", encoded(i, kind="png")) for i in range(3)])
    mmvp_folder(root / "mmvp")
    models, teacher = [small_clip() for _ in range(6)], small_teacher()
    host = list(everything(root, "cpu", models, teacher))
    torch._lazy.ts_backend.init()  # a device that every machine has
    torch.set_default_device("lazy")
    for expected, found in zip(host, everything(root, "lazy", models, teacher), strict=True):
        assert found == expected


if __name__ == "__main__":
    main(Path(sys.argv[1]))
