"""A resumed run sees every image of a pass once, or is refused by the name of what changed."""

import logging
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset
from torchvision.transforms import Resize

import diva_rs
from builders import runs
from builders.pictures import encoded, write_tar
from builders.runs import Stop, stop_at
from builders.small import images, small_clip
from diva_rs import ConfigError
from diva_rs.data import ImageFolder, ImageLoader, KeyedSampler, collate, folder_loader, shard_loader
from diva_rs.run.loader import ResumableLoader
from diva_rs.run.ranks.loaders import places_on

RECIPE = diva_rs.Recipe(batch=4, steps=6, log_every=1, schedule="constant")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 pictures in a folder, 24 others of the same names, and 24 in six shards."""
    place = tmp_path_factory.mktemp("data")
    for folder in ("photos", "others"):
        (place / folder).mkdir()
        for number in range(24):
            (place / folder / f"{number}.jpg").write_bytes(encoded(number + 24 * (folder == "others")))
    for shard in range(6):
        members = [(f"{shard}{n}.jpg", encoded(4 * shard + n)) for n in range(4)]
        write_tar(place / f"{shard}.tar", members)
    return place


@pytest.fixture
def keys(monkeypatch):
    """The keys of the samples that are trained on."""
    found, real = [], diva_rs.step.inputs._keys

    def noted(*arguments):
        keys = real(*arguments)
        found.extend(keys.tolist())
        return keys

    monkeypatch.setattr(diva_rs.step.inputs, "_keys", noted)
    return found


def train(teacher, loader, folder, recipe=RECIPE, **given):
    return runs.train(teacher, loader, recipe, output_dir=folder, **given)


def cut(teacher, loader, folder, **given):
    with pytest.raises(Stop):
        train(teacher, loader, folder, callbacks=[stop_at(3)], **given)


def folder(data, name="photos", **given):
    return folder_loader(data / name, **{"batch": 4, "size": 16, "workers": 0, **given})


def shards(data, pattern="{0..5}.tar", **given):
    return shard_loader(str(data / pattern), **{"batch": 4, "size": 16, "workers": 1, **given})


class Numbered(TensorDataset):
    """Images with their numbers as ids."""

    def __init__(self, count=24):
        super().__init__(images(count))

    def __getitem__(self, index):
        return {"images": super().__getitem__(index)[0], "ids": index}


class Stream(IterableDataset):
    """The images of `Numbered`, a share for each worker; an image shows the epoch that set_epoch gave."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, 24, step):
            yield {"images": images(1, seed=number)[0] * 0.5 + 0.1 * self.epoch, "ids": number}


def plain(data, dataset=Numbered, **given):
    return DataLoader(dataset(), **{"batch_size": 4, **given})


def part(data, numbers=range(20)):
    return DataLoader(Subset(Numbered(), numbers), batch_size=4)


def listed(data, paths="abcdefghijkl", transform=Resize(16)):  # noqa: B008
    """A dataset that keeps a list of its files, each with its class."""
    dataset = Numbered(len(paths))
    dataset.samples, dataset.transform = [(f"/data/{path}.jpg", 0) for path in paths], transform
    return DataLoader(dataset, batch_size=2)


@pytest.mark.parametrize(
    ("make", "first", "second"),
    [
        (folder, {"batch": 4}, {"batch": 2}),
        (folder, {"batch": 2}, {"batch": 4}),
        (folder, {"batch": 4}, {"batch": 8}),
        (folder, {"workers": 0}, {"workers": 2}),
        (shards, {"batch": 4}, {"batch": 2}),
        (shards, {"batch": 2, "workers": 2}, {"batch": 4, "workers": 2}),
        (plain, {"batch_size": 4}, {"batch_size": 8}),  # the place is in the middle of a batch
        (plain, {"batch_size": 4, "shuffle": True}, {"batch_size": 3, "shuffle": True, "num_workers": 1}),
        (partial(plain, dataset=Stream), {"batch_size": 2}, {"batch_size": 4, "num_workers": 1}),
    ],
)
def test_every_image_of_the_pass_comes_once(teacher, data, keys, tmp_path, make, first, second):
    cut(teacher, make(data, **first), tmp_path)
    del keys[12:]  # what was read for the fourth step
    train(teacher, make(data, **second), tmp_path)
    assert len(set(keys[:24])) == 24


@pytest.mark.parametrize(
    ("make", "second", "match"),
    [
        (folder, {"seed": 1}, "the loader's seed was 0, is 1"),
        (folder, {"size": 24}, "the loader's transform was .*size=16.* is .*size=24"),
        (folder, {"scale": (0.5, 1.0)}, r"scale=\(0.9, 1.0\).*scale=\(0.5, 1.0\)"),
        (folder, {"views": diva_rs.data.Views(crops=2)}, r"the loader's views was None, is Views\("),
        (folder, {"name": "others"}, r"the loader's files was \w+, is \w+"),
        (shards, {"workers": 2}, "the loader's workers was 1, is 2"),
        (shards, {"pattern": "{0..4}.tar"}, "the loader's shards was 6, is 5"),
        (shards, {"shuffle": False}, "the loader's shuffle was True, is False"),
        (plain, {"shuffle": True}, "sampler was SequentialSampler, is RandomSampler"),
        (plain, {"dataset": partial(Numbered, 20)}, "the loader's images was 24, is 20"),
        (plain, {"dataset": Stream}, "SequentialSampler, is None; .*dataset was None, is Stream"),
        (partial(plain, dataset=Stream), {"num_workers": 2}, "the loader's workers was 1, is 2"),
        (partial(plain, dataset=Stream, num_workers=2), {"batch_size": 2}, "loader's batch was 4, is 2"),
        (part, {"numbers": range(4, 24)}, r"the loader's indices was \w+, is \w+"),
        (listed, {"paths": "abcdefghijlk"}, r"the loader's files was \w+, is \w+"),
        (listed, {"transform": Resize(24)}, r"transform was Resize\(size=16.*size=24"),
        (lambda data, count=6: [images(4)] * count, {"count": 8}, "batches was 6, is 8"),
    ],
)
def test_another_loader_is_refused_by_name(teacher, data, tmp_path, make, second, match):
    cut(teacher, make(data), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=match):
        train(teacher, make(data, **second), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_one_loader_batch_per_step_is_part_of_the_run(teacher, data, tmp_path):
    recipe = RECIPE.replace(batch=None)
    cut(teacher, folder(data), tmp_path, recipe=recipe)
    with pytest.raises(ConfigError, match="the loader's batch was 4, is 2"):
        train(teacher, folder(data, batch=2), tmp_path, recipe)


def test_larger_batches_do_not_end_one_pass_early(teacher, data, tmp_path):
    cut(teacher, folder(data), tmp_path, steps=None)
    with pytest.raises(ConfigError, match="steps was 6, is 3"):
        train(teacher, folder(data, batch=8), tmp_path, steps=None)


def test_force_begins_the_pass_again(teacher, data, keys, tmp_path, caplog):
    cut(teacher, folder(data), tmp_path)
    keys.clear()
    train(teacher, folder(data, name="others", shuffle=False), tmp_path, resume="force")
    assert len(set(keys)) == len(keys) == 12
    assert "shuffle was True, is False: the pass over the data begins again" in caplog.text


def drawn(data, numbers):
    """Another order, of which the loader's facts say nothing."""
    return DataLoader(Numbered(), batch_size=4, sampler=SubsetRandomSampler(numbers))


def test_samples_that_do_not_come_again_are_refused_or_warned_of(teacher, data, tmp_path, caplog):
    cut(teacher, drawn(data, range(20)), tmp_path / "ids")
    with pytest.raises(ConfigError, match=r"\(DataLoader\) does not give the 12 samples again that"):
        train(teacher, drawn(data, range(4, 24)), tmp_path / "ids")
    assert "12 samples again" not in caplog.text
    train(teacher, drawn(data, range(4, 24)), tmp_path / "ids", resume="force")
    assert "12 samples again" in caplog.text
    caplog.clear()
    for second, warnings in (([*range(6)], 0), ([0, 2, 1, 3, 4, 5], 1)):  # without ids
        cut(teacher, [images(4, seed=number) for number in range(6)], tmp_path / f"{warnings}")
        train(teacher, [images(4, seed=number) for number in second], tmp_path / f"{warnings}")
        assert caplog.text.count("12 samples again") == warnings


@pytest.mark.parametrize("ids", [["0", "1", "1"], torch.tensor([0, 1, 1])])
def test_an_id_that_comes_twice_is_warned_of_once(ids, caplog):
    loader = ResumableLoader([{"images": images(3), "ids": ids}, {"images": images(3), "ids": ids}], seed=0)
    for epoch in range(2):
        list(loader.read(epoch))
    assert caplog.text.count("the id 1 comes twice in a pass") == 1
    list(ResumableLoader([{"images": images(3), "ids": [0, 1, 2]}], seed=0).read(0))
    assert caplog.text.count("comes twice") == 1


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_pass_of_workers_that_stay_has_the_order_of_a_new_loader(generator):
    def loader():
        workers = {"num_workers": 1, "persistent_workers": True}
        return DataLoader(Numbered(), 4, shuffle=True, generator=generator, **workers)

    def order(resumable, epoch):
        return [index for _, batch in resumable.read(epoch) for index in batch.ids.tolist()]

    stays = ResumableLoader(loader(), seed=0)
    first, second = order(stays, 0), order(stays, 1)
    assert first != second == order(ResumableLoader(loader(), seed=0), 1)


def test_a_generator_of_the_callers_gives_its_order_again_in_one_process(teacher, data, keys, tmp_path):
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(Numbered(), batch_size=4, shuffle=True, generator=generator)
    state = generator.get_state()
    order = [index for batch in loader for index in batch["ids"].tolist()]
    generator.set_state(state)
    cut(teacher, loader, tmp_path)
    del keys[12:]
    train(teacher, loader, tmp_path)
    assert keys == order
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("make", "places", "world", "expected"),
    [
        (folder, ((12,),), 2, ((6,), (6,))),
        (folder, ((4,), (4,)), 3, ((3,), (3,), (2,))),
        (folder, ((5,), (4,)), 1, ((9,),)),
        (folder, ((8,), (4,)), 1, None),
        (shards, ((0, 8), (0, 4)), 2, ((0, 8), (0, 4))),
        (shards, ((0, 8), (0, 4)), 1, None),
        (plain, ((8,),), 2, None),  # not divided among ranks
        (partial(plain, sampler=KeyedSampler(torch.arange(24).numpy(), 0)), ((8,),), 2, ((4,), (4,))),
        (partial(plain, sampler=KeyedSampler(torch.arange(24).numpy(), 0)), ((4,),), 2, None),
        (lambda data: [images(2)], ((4,), (4,)), 1, None),
        (lambda data: [images(2)], (), 3, ()),
    ],
)
def test_the_places_of_another_number_of_ranks(data, make, places, world, expected):
    assert places_on(make(data), places, world) == expected


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(8))])
def test_workers_that_stay_alive_show_new_crops_in_every_pass(data, wrap):
    dataset = wrap(ImageFolder(data / "photos", size=16))
    loader = DataLoader(dataset, 8, num_workers=1, persistent_workers=True, collate_fn=collate)
    resumable = diva_rs.run.loader.ResumableLoader(loader, seed=0)
    first, second = (next(resumable.read(epoch))[1] for epoch in (0, 1))
    assert torch.equal(first.ids, second.ids)
    assert not any(torch.equal(one, two) for one, two in zip(first.images, second.images, strict=True))


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_that_set_epoch_does_not_reach_are_named(teacher, persistent, caplog):
    loader = DataLoader(Stream(), 12, num_workers=1, persistent_workers=persistent)
    with caplog.at_level(logging.WARNING, "diva_rs"):
        diva_rs.post_train(small_clip(), teacher, loader, steps=6, batch=12, progress=False)
    assert caplog.text.count("persistent_workers=False") == persistent


def test_a_dataset_without_a_sampler_is_read_in_its_order(data):
    loader = ImageLoader(ImageFolder(data / "photos", size=16), batch=5, workers=0)
    ids = [i for batch in loader for i in batch["ids"].tolist()]
    assert ids == loader.dataset.ids.tolist() and loader.position == (24,)
    loader.start_at((22,))
    assert [i for batch in loader for i in batch["ids"].tolist()] == ids[22:]
    with pytest.raises(ConfigError, match=r"position=\(1, 2\) is not of a loader with 1 workers"):
        loader.start_at((1, 2))
