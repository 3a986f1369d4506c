"""How often the microworld's UNet judges right, by draws and by timesteps: `python -m lab.study.draws`.

The other values of a caption are the true ones, so that no mistake about them counts.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from diva_rs.captions import Judge
from lab.study.captions import keys_of, truth
from lab.study.data import TrainingImages, unseen
from lab.world import StudyWorld

DRAWS = (1, 2, 4, 8, 16)
RANGES = {"0 to 332": (0, 333), "333 to 665": (333, 666), "666 to 999": (666, 1000), "all": None}


def right(
    world: StudyWorld, images: TrainingImages, draws: Sequence[int], timesteps: tuple[int, int] | None = None
) -> Mapping[str, list[float]]:
    """Per cent of the images whose attribute is judged right by the first draws, for each number of draws.

    Args:
        timesteps: from the first up to the second, without it; None: all.

    >>> world = StudyWorld()
    >>> found = right(world, TrainingImages(world.vae, unseen(4)), [1, 2])
    >>> len(found), len(found["colour"])
    (9, 2)
    """
    judge = Judge(world.teacher(), draws=max(2, *draws), timestep_range=timesteps, encode=world.encode)
    words, values = images.dataset.vocabulary, truth(images)
    names = list(words.attributes)
    sets = [[words.set_of(name, values[key]) for name in names] for key in keys_of(images)]
    losses = judge.losses(images.latents, keys_of(images), sets, range(max(draws)))
    hits: dict[str, list[float]] = {}
    for place, name in enumerate(names):
        true = [sets[image][place].words.index(values[key][name]) for image, key in enumerate(values)]
        best = [[of[place][:, :count].mean(1).argmin() for of in losses] for count in draws]
        hits[name] = [100 * float(np.mean(np.array(each) == true)) for each in best]
    return hits


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line per row, a column per attribute, as Markdown."""
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, cells in rows.items():
        lines.append(f"| {row} | " + " | ".join(f"{cells[name]:.0f}" for name in names) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    world = StudyWorld()
    images = TrainingImages(world.vae, unseen(256))
    found = right(world, images, DRAWS)
    print(
        table(
            {
                f"draws: {count}": {name: hits[at] for name, hits in found.items()}
                for at, count in enumerate(DRAWS)
            }
        )
    )
    each = {name: right(world, images, [4], timesteps) for name, timesteps in RANGES.items()}
    print("\nFour draws:\n")
    print(table({f"timesteps {name}": {at: hits[0] for at, hits in of.items()} for name, of in each.items()}))
