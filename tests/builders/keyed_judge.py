"""A judge without a denoiser, whose losses are a function of key and captions; and runs that are killed.

`python -m builders.keyed_judge FOLDER` kills runs in FOLDER/0, FOLDER/1, ... while they write, and starts
them again until they end. `python -m builders.keyed_judge FOLDER PHOTOS` judges a folder of images.
"""

import hashlib
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builders.killed import FORK, die_while_writing
from builders.small import small_teacher
from diva_rs.captions import ContrastSet, Evidence, Judgements, Vocabulary
from diva_rs.data import folder_loader
from diva_rs.run.judging import judge_images

WORDS = Vocabulary({"colour": ("red", "blue"), "size": ("big", "small", "tiny")}, subjects=("car", "dog"))
IMAGES = 12


def images(count: int = IMAGES, batch: int = 3) -> list[dict[str, Any]]:
    """Batches of images with ids."""
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = list(range(100, 100 + count))
    return [
        {"images": pixels[start : start + batch], "ids": ids[start : start + batch]}
        for start in range(0, count, batch)
    ]


def first_words(pixels: torch.Tensor) -> list[dict[str, str]]:
    """The guess that each image shows the first word of each name."""
    return [{name: WORDS.words(name)[0] for name in WORDS.names()} for _ in pixels]


class KeyedJudge:
    """What `judge_images` calls of a `Judge`."""

    def __init__(self, **settings: Any) -> None:
        self.teacher, self.encode = small_teacher(), first_words  # which is not called
        self.given = {"draws": 4, "timestep_range": (0, 500), **settings}
        self.judged = list[int]()  # keys, in the order of the calls

    def settings(self) -> dict[str, Any]:
        """As `Judge.settings`."""
        return self.given

    def describe(
        self, latents: Any, keys: Any, vocabulary: Any, start: Any, rounds: int, names: Any = None
    ) -> Judgements:
        """As `Judge.describe`."""
        assert len(latents) == len(keys) == len(start) and latents.shape[1] == 4
        self.judged += keys.tolist()
        names = names or vocabulary.attributes
        sets = [[vocabulary.set_of(name, values) for name in names] for values in start]
        found = {
            key: [_evidence(key, each) for each in of] for key, of in zip(keys.tolist(), sets, strict=True)
        }
        rest = [{name: word for name, word in each.items() if name not in names} for each in start]
        return Judgements(found, vocabulary, given=dict(zip(keys.tolist(), rest, strict=True)))


def _evidence(key: int, each: ContrastSet) -> Evidence:
    seed = hashlib.sha256(f"{key} {each.captions}".encode()).digest()[:8]
    losses = np.random.default_rng(int.from_bytes(seed, "little")).random((len(each), 4), np.float32)
    losses[key % len(each)] -= 1
    return Evidence(each, losses, settled=key % 2 == 0)


def judged(folder: Path, judge: KeyedJudge | None = None, loader: Any = None, **settings: Any) -> Judgements:
    """`judge_images` with what this module has."""
    judge, loader = judge or KeyedJudge(), loader or images()
    return judge_images(judge, loader, WORDS, folder, first_words, **settings)  # type: ignore[arg-type]


def main() -> None:
    """Kill and start again; print how many runs were killed how often."""
    torch.set_num_threads(1)
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 10:
        folder, ended = Path(sys.argv[1], str(runs)), False
        while not ended:
            calls = rng.randrange(1, 40)

            def work(folder: Path = folder, calls: int = calls) -> None:
                die_while_writing(calls, rng)
                judged(folder)

            child = FORK.Process(target=work)
            child.start()
            child.join()
            ended = child.exitcode == 0
            assert ended or child.exitcode == -signal.SIGKILL, child.exitcode
            kills += not ended
        runs += 1
    print(json.dumps([runs, kills]))


if __name__ == "__main__":
    if sys.argv[2:]:
        photos = folder_loader(sys.argv[2], 2, 16, 0, scale=None, shuffle=False, on_bad_image="skip")
        judged(Path(sys.argv[1]), loader=photos)
    else:
        main()
