"""What folders, shards and caches leave out is counted by reason; a lost picture is a warning."""

import logging
import os
import shutil

import pytest

from builders.pictures import encoded, write_tar
from diva_rs import DataError
from diva_rs.data import Accounting, ImageFolder, folder_loader, shard_loader


def left_out(accounting):
    return {reason: (left.count, left.example) for reason, left in accounting.left_out.items()}


def fill(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


PNG = encoded(kind="png")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"


@pytest.mark.parametrize(
    ("files", "reasons", "level"),
    [
        ({}, {}, "INFO"),
        ({"b.HEIC": HEIC, "c.heic": b""}, {"with the ending .heic": (2, "b.HEIC")}, "WARNING"),
        ({"b": PNG, "c/d": b"words"}, {"without an ending": (2, "b")}, "WARNING"),
        ({"README": b"words"}, {"without an ending": (1, "README")}, "INFO"),
        ({"b.json": b"{}", "c.json": b"{}"}, {"with the ending .json": (2, "b.json")}, "INFO"),
        ({"b.jpg~": encoded()}, {"with an unknown ending": (1, "b.jpg~")}, "WARNING"),
        ({"b.jpg.1": encoded()}, {"with an unknown ending": (1, "b.jpg.1")}, "WARNING"),
        ({"00.tar": b""}, {"with the ending .tar": (1, "00.tar")}, "WARNING"),
        ({"a.parquet": b"PAR1"}, {"with the ending .parquet": (1, "a.parquet")}, "WARNING"),
        ({"._a.png": b"macOS", ".git/x.png": PNG}, {"hidden": (2, ".git/")}, "INFO"),
        ({"c/.b.png": PNG}, {"hidden": (1, "c/.b.png")}, "WARNING"),
    ],
)
def test_a_folder_counts_what_it_leaves_out(tmp_path, caplog, files, reasons, level):
    folder = fill(tmp_path, {"a.png": PNG, **files})
    with caplog.at_level(logging.INFO, "diva_rs.data"):
        accounting = folder_loader(folder, workers=0).accounting
    assert accounting.used == 1 and left_out(accounting) == reasons
    [record] = caplog.records
    assert record.levelname == level and str(accounting) in record.message


def test_a_folder_reached_twice_is_counted_unless_the_link_leads_up(tmp_path):
    folder = fill(tmp_path, {"cat/a.png": PNG})
    os.symlink(folder / "cat", folder / "kitten")
    os.symlink(folder, folder / "cat" / "loop")
    accounting = ImageFolder(folder).accounting
    assert accounting.used == 1 and left_out(accounting) == {"linked a second time": (1, "kitten/")}


def test_a_broken_link_is_a_warning(tmp_path):
    folder = fill(tmp_path, {"a.png": PNG})
    os.symlink(folder / "gone", folder / "cat")
    accounting = ImageFolder(folder).accounting
    assert left_out(accounting) == {"without an ending": (1, "cat")} and accounting.pictures


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    folder = fill(tmp_path, {"a/a.png": PNG, "b/b.png": PNG})
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith(refused):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = "/b"
    accounting = ImageFolder(folder).accounting
    assert accounting.used == 1 and left_out(accounting) == {"that cannot be listed": (1, "b/")}
    refused = folder.name
    with pytest.raises(DataError, match=rf"{folder} cannot be listed: Permission denied"):
        ImageFolder(folder)


def test_unreadable_images_are_left_out_when_they_are_met(tmp_path):
    loader = folder_loader(fill(tmp_path, {"a.png": PNG, "b.png": b""}), 2, 8, 0, on_bad_image="skip")
    assert loader.accounting.used == 2
    list(loader)
    assert loader.accounting.used == 1
    assert left_out(loader.accounting) == {"unreadable": (1, str(tmp_path / "b.png"))}


def test_a_folder_of_other_pictures_alone_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"holds no image: .*2 left out: 2 with the ending \.heic \(a\.HE"):
        ImageFolder(fill(tmp_path, {"a.HEIC": HEIC, "b.HEIC": HEIC}))


# Members, how many of them are used, and one reason with the first of those that are left out for it.
BESIDE = "beside the image of their sample"
MEMBERS = {
    "samples": (["0.jpg", "0.json", "0.txt", "1.jpg", "1.json"], 2, ("with the ending .json", 2, "0.json")),
    "texts at the end": (["0.png", "1.png", "0.txt", "1.txt"], 2, ("with the ending .txt", 2, "0.txt")),
    "about the shard": (["0.png", "README", "1.png", "a.csv"], 2, ("without an ending", 1, "README")),
    "nested": (["./x/a.JPG", "x/y/a.Png", "x/y/b.v2.png", "v1.0/1.jpg", "v1.0/2.jpg"], 5, None),
    "dots in names": (["f.0001.jpg", "f.0002.jpg", "0.left.png", "0.right.png"], 4, None),
    "dots, other": (["f.1.jpg", "f.1.xmp", "f.2.jpg", "f.2.xmp"], 2, ("with the ending .xmp", 2, "f.1.xmp")),
    "beside": (["0.depth.png", "0.jpg", "0.mask.png", "1.jpg"], 2, (BESIDE, 2, "0.depth.png")),
    "two formats": (["0.jpg", "0.png", "1.jpg"], 2, (BESIDE, 1, "0.png")),
    "hidden": (["x/._0.jpg", ".DS_Store", "0.jpg", "__1.jpg"], 2, ("hidden", 2, "x/._0.jpg")),
    "other pictures": (["0.heic", "1.jpg", "2.heic"], 1, ("with the ending .heic", 2, "0.heic")),
    "a name again": (["0.jpg", "1.jpg", "0.jpg", "2.png"], 4, None),
    "a name twice": (["0.jpg", "0.jpg"], 1, (BESIDE, 1, "0.jpg")),
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("names", "used", "reason"), MEMBERS.values(), ids=MEMBERS)
def test_shards_use_every_image_or_count_it(tmp_path, names, used, reason, workers):
    members = [(name, encoded(i, kind="png")) for i, name in enumerate(names)]
    loader = shard_loader(str(write_tar(tmp_path / "a.tar", members)), 2, 8, workers)
    for _ in range(2):  # a second pass counts nothing twice
        ids = [number for batch in loader for number in batch["ids"].tolist()]
        assert len(set(ids)) == len(ids) == used == loader.accounting.used and not loader.bad
        found = left_out(loader.accounting)
        assert reason is None or found[reason[0]] == (reason[1], f"a.tar/{reason[2]}")
        assert sum(count for count, _ in found.values()) == len(names) - used


def test_shards_log_their_accounting_after_a_pass(tmp_path, caplog):
    for number in range(3):
        members = [(f"{number}.jpg", encoded(number)), (f"{number}.heic", HEIC), ("stats.json", b"{}")]
        write_tar(tmp_path / f"{number}.tar", members)
    loader = shard_loader(f"{tmp_path}/{{0..2}}.tar", 2, 8, 2)
    list(loader)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(caplog.records)
    assert caplog.records[-1].message.endswith(str(loader.accounting))
    assert str(loader.accounting) == (
        "3 images used, 6 left out: 3 with the ending .heic (0.tar/0.heic), "
        "3 with the ending .json (0.tar/stats.json)"
    )


def test_tars_written_one_after_the_other_are_all_read(tmp_path):
    parts = [write_tar(tmp_path / f"{i}.tar", [(f"{i}.jpg", encoded(i))]).read_bytes() for i in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    loader = shard_loader(tmp_path / "all.tar", 4, 8, 0)
    assert [len(batch["ids"]) for batch in loader] == [3] and loader.accounting.used == 3
    (tmp_path / "all.tar").write_bytes(b"".join(parts)[:-9000])
    with pytest.raises(DataError, match="truncated or damaged shard"):
        list(shard_loader(tmp_path / "all.tar", 4, 8, 0))


def test_links_in_shards_are_counted(tmp_path):
    path = tmp_path / "a.tar"
    fill(tmp_path / "a", {"0.jpg": encoded()})
    os.link(tmp_path / "a" / "0.jpg", tmp_path / "a" / "1.jpg")
    shutil.make_archive(str(tmp_path / "a"), "tar", tmp_path / "a")
    loader = shard_loader(path, 2, 8, 0)
    assert len(next(iter(loader))["ids"]) == 1
    list(loader)
    [(reason, (count, _))] = left_out(loader.accounting).items()
    assert (reason, count) == ("that are links or no files", 1) and loader.accounting.pictures


def test_shards_without_an_image_say_what_is_there(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.heic", HEIC), ("0.json", b"{}")])
    with pytest.raises(DataError, match=r"gave no image: 0 images used, 2 left out: 1 with the ending \.h"):
        list(shard_loader(str(path), workers=0))


def test_a_line_names_the_pictures_first_and_a_few_reasons():
    accounting = Accounting(used=1)
    for number in range(20):
        accounting.leave_out(f"with the ending .{number}", "x", count=number + 1, picture=number == 0)
    line = str(accounting)
    assert line.startswith("1 image used, 210 left out: 1 with the ending .0 (x), 20 with the ending .19 (x)")
    assert line.endswith("others for 8 more reasons")
