"""Runs over several ranks: beginning equal, what is sent, who writes, and what happens when one fails."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from builders.rank_runs import LIMIT
from builders.run_ranks import Runs
from builders.small import worst
from diva_rs import ConfigError
from diva_rs._base.checkpoint import load_state, load_weights
from diva_rs.data.loader import KeyedSampler
from diva_rs.distributed import launched
from diva_rs.errors import DeviceError
from diva_rs.run.ranks.loaders import is_divided
from diva_rs.run.ranks.start import gpu_of

pytestmark = pytest.mark.timeout(900)  # a busy machine is no failure
NAMES = ("from_shards-2", "with_files-2", "with_files-1", "counted-2", "counted-1", "interrupted-2")
REFUSED = ("other_weights-2", "other_recipe-2", "other_teacher-2", "raising-2", "killed-2")
REFUSED += ("undivided-2", "same_batches-2")
RESUMED = ("resumed-1", "resumed-2", "begun-1", "continued-2")
WATCHED = ("guarded-1", "guarded-2")
SPOILT = ("spoilt-2", "spoilt_on-2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("ranks"), "straight-1", *NAMES, *REFUSED, *RESUMED, *WATCHED, *SPOILT)


def test_uneven_shards_give_every_rank_the_same_steps(runs):
    ranks = runs.of("from_shards-2")
    most = max(len(rank["decoded"]) for rank in ranks)
    assert {rank["report"]["steps"] for rank in ranks} == {-(-most // 2)}  # batches of the rank with the most
    assert {rank["report"]["samples"] for rank in ranks} == {9}
    names = [name for rank in ranks for name in rank["decoded"]]
    assert len(set(names)) == len(names) == 9


def test_other_weights_become_those_of_rank_0(runs):
    first, second = runs.of("other_weights-2")
    assert worst(second["weights"], first["weights"]) == 0.0
    assert "rank 1's CLIP differed from rank 0's in 25 tensors" in runs.log("other_weights-2", 1)


@pytest.mark.parametrize(
    "run, message",
    [
        ("other_recipe-2", "ConfigError: rank 1 has another recipe than rank 0: lr=1.1, not 0.1"),
        ("other_teacher-2", "ConfigError: rank 1 has another diffusion model than rank 0"),
        ("undivided-2", "DataError: on 2 ranks each one would read all images of the loader: give a Data"),
        ("same_batches-2", "DataError: all 2 ranks read the same first batch: give a DataLoader a torch"),
    ],
)
def test_what_does_not_fit_several_ranks_raises_on_all(runs, run, message):
    assert runs.ends[run]["codes"] == [1, 1]
    for rank in range(2):
        assert f"diva_rs.errors.{message}" in runs.log(run, rank)


def test_only_rank_0_writes(runs):
    first, second = runs.of("with_files-2")
    assert first["written"]
    assert second["written"] == []
    rows = (runs.place / "files-2" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]
    alone, together = ({f.name for f in (runs.place / f"files-{world}").iterdir()} for world in (1, 2))
    assert together == alone


def test_what_is_sent_is_one_gradient_and_three_losses_at_once(runs):
    [alone] = runs.of("counted-1")
    values = sum(value.numel() for value in alone["weights"].values())
    for rank in runs.of("counted-2"):
        assert rank["sent"] == [values + 3] * 5
        assert worst(rank["weights"], alone["weights"]) <= 1e-10


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step(runs):
    for rank in runs.of("interrupted-2"):
        assert (rank["report"]["interrupted"], rank["report"]["steps"]) == (True, 3)


def test_all_ranks_skip_an_update_that_one_of_them_spoils(runs):
    first, second = runs.of("spoilt-2")
    assert worst(second["weights"], first["weights"]) == 0.0
    assert all(value.isfinite().all() for value in first["weights"].values())
    for rank in (first, second):
        assert [row["skipped"] for row in rank["history"]] == [0, 0, 1, 1, 1]
        assert [row["step"] for row in rank["history"] if row["loss"] != row["loss"]] == [3]
    said = "step 3 was skipped: its loss is not finite. Samples: "
    assert said + "1-2a, 1-2b\n" in runs.log("spoilt-2", 1)
    assert said + "on another rank, which names them\n" in runs.log("spoilt-2", 0)


def test_too_many_skipped_updates_end_all_ranks_together(runs):
    assert runs.ends["spoilt_on-2"]["codes"] == [1, 1]
    for rank in range(2):
        log = runs.log("spoilt_on-2", rank)
        assert "DivaError: 2 updates in a row were skipped" in log and "the last at step 4" in log


@pytest.mark.parametrize("run, codes", [("raising-2", [1, 1]), ("killed-2", [1, -9])])
def test_a_rank_that_raises_or_is_killed_ends_the_others(runs, run, codes):
    assert runs.ends[run]["codes"] == codes
    assert runs.ends[run]["seconds"] < LIMIT
    assert "RankError: the connection to another rank broke" in runs.log(run, 0)
    assert ("ValueError: no image behind this door" in runs.log(run, 1)) == (run == "raising-2")


@pytest.mark.parametrize("run", ["raising", "killed", "resumed-2"])
def test_no_checkpoint_is_left_half_written(runs, run):
    found = list((runs.place / run / "checkpoints").iterdir())
    assert found
    for checkpoint in found:
        load_state(checkpoint)  # checks every file


@pytest.mark.parametrize("run, step", [("resumed-1", 5), ("resumed-2", 5), ("continued-2", 7)])
def test_a_run_resumes_with_as_many_or_other_ranks_to_the_same_end(runs, run, step):
    # Begun by two ranks of which one was killed in step 6, or by one rank until Ctrl-C.
    assert f"at step {step}" in runs.log(run)
    [straight] = runs.of("straight-1")
    for rank in runs.of(run):
        assert [row["step"] for row in rank["history"]] == list(range(1, 11))
        assert rank["report"]["samples"] == straight["report"]["samples"]
        assert worst(rank["weights"], straight["weights"]) <= 1e-10


def test_the_guard_ends_all_ranks_at_the_step_where_it_ends_one(runs):
    [alone] = runs.of("guarded-1")
    last = alone["report"]["steps"]
    assert 2 < last < 10
    assert alone["moved"][-1] > 0.3 >= alone["moved"][-2]
    for rank in runs.of("guarded-2"):
        assert rank["report"]["steps"] == last
        assert rank["report"]["stopped"] == alone["report"]["stopped"]
        assert rank["report"]["evaluation"]["best"]["step"] == last - 2
        assert worst(rank["weights"], alone["weights"]) <= 1e-10  # of the step that the guard still allowed


def test_rank_0_alone_evaluates_and_keeps_the_best(runs):
    [alone] = runs.of("guarded-1")
    first, second = runs.of("guarded-2")
    assert first["moved"] == pytest.approx(alone["moved"], rel=1e-10)
    assert (second["moved"], second["written"]) == ([], [])
    best = load_weights(runs.place / "guarded-2" / "best" / "clip.safetensors")
    kept = {name.removeprefix("clip."): value for name, value in first["weights"].items()}
    for name, value in best.items():
        if name.startswith("visual."):
            assert value.equal(kept[name.removeprefix("visual.")])
    # A script that goes on with the scores does so on every rank.
    assert second["history"] == first["history"]
    assert [row["moved"] for row in second["history"] if "moved" in row] == first["moved"][1:]


def test_a_launcher_is_recognised_by_its_variables(monkeypatch):
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launched() == (3, 4, 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched() == (3, 4, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match="RANK=4 is not below WORLD_SIZE=4"):
        launched()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="RANK is 'one'"):
        launched()
    monkeypatch.delenv("MASTER_PORT")
    assert launched() is None


def test_ranks_that_share_a_gpu_get_their_own():
    one_gpu = [("a", "gpu0")] * 4
    assert [gpu_of(one_gpu, rank, rank, 0, 8) for rank in range(4)] == [0, 1, 2, 3]
    apart = [("a", "gpu1"), ("a", "gpu3")]
    assert [gpu_of(apart, rank, rank, 2 * rank + 1, 4) for rank in range(2)] == [1, 3]
    two_machines = [("a", "gpu0"), ("b", "gpu0")]
    assert gpu_of(two_machines, 1, 0, 0, 1) == 0
    with pytest.raises(DeviceError, match="4 ranks on a for 2 GPUs: start at most 2"):
        gpu_of(one_gpu, 3, 3, 0, 2)


def test_a_loader_that_is_divided_already_is_taken_as_it_is():
    data = TensorDataset(torch.zeros(8, 1))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    assert not is_divided(DataLoader(data, batch_size=2, shuffle=True))
    assert is_divided(DataLoader(data, batch_size=2, sampler=sampler))
    assert is_divided(DataLoader(data, batch_size=2, sampler=KeyedSampler(torch.arange(8).numpy(), seed=0)))
