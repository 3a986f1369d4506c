"""Arguments that nobody gives on purpose: refused by name, in few words, nothing half-done."""

from fractions import Fraction
from math import comb
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builders import evaluations, mmvp
from builders.refused import refused
from builders.small import images, small_clip, small_teacher
from diva_rs import Recipe, Teacher, Trainer, evaluation, interpolate, interpolation_sweep, post_train
from diva_rs._base.checkpoint import save_state, save_weights
from diva_rs.data import center_transform, clip_input, vae_input
from diva_rs.errors import ConfigError, DataError, DeviceError, ShapeError, WeightsError

pytestmark = pytest.mark.hostile

LAZY = torch.nn.UninitializedParameter()
NESTED = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
META = torch.zeros(2, 3, device="meta")
ENDLESS = 10**5000  # has more digits than Python prints
HALF = (0.5, 0.5, 0.5)


class Lying:
    """A length that it does not have."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter([])


class Unprintable:
    """As a nested tensor that looks beyond its storage."""

    def __repr__(self):
        raise RuntimeError("setStorage: out of bounds for storage of size 72")


@pytest.fixture(scope="module")
def clip():
    return small_clip()


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


@pytest.mark.parametrize("place", ["noisy", "timesteps", "condition"])
def test_meta_tensors_do_not_leave_their_device(teacher, place):
    given = {
        "noisy": torch.zeros(2, 4, 8, 8),
        "timesteps": torch.tensor([1, 2]),
        "condition": torch.zeros(2, 5, 24),
    }
    with pytest.raises(DeviceError, match="on the meta device, which holds no values: give it on cpu"):
        teacher.denoise(**given | {place: given[place].to("meta")})


@pytest.mark.parametrize(("odd", "reason"), [(NESTED, "an ordinary tensor"), (META, "no numbers")])
def test_drift_names_embeddings_that_hold_no_numbers(clip, odd, reason):
    with pytest.raises(ShapeError, match=f"before=<torch.float32.*{reason}"):
        evaluation.drift(odd, clip, images(2))


def test_a_drift_metric_does_not_ask_an_iterable_for_its_length(clip):
    with pytest.raises(DataError, match="there is not a single batch"):
        evaluation.Drift(clip, Lying(2**62))


def test_nested_text_is_no_condition(teacher):
    with pytest.raises(ShapeError, match=r"text_condition=<torch.float32.*an ordinary tensor is needed"):
        Teacher(teacher.unet, text_condition=NESTED)


@pytest.mark.parametrize("odd", [LAZY, NESTED, torch.eye(3).to_sparse(), META])
def test_a_state_of_odd_tensors_changes_nothing(clip, teacher, odd):
    trainer = Trainer(clip, teacher)
    state = trainer.state_dict()
    state["parameters"]["visual.proj"] = odd
    with refused(WeightsError, "entry 'visual.proj' is <.* on .*it holds no plain values", clip):
        trainer.load_state_dict(state)


@pytest.mark.parametrize("name", ["x" * 10_000, ENDLESS], ids=["long", "endless"])
def test_a_state_with_endless_names_is_refused_in_few_words(clip, teacher, name):
    trainer = Trainer(clip, teacher)
    state = trainer.state_dict()
    state["parameters"][name] = torch.zeros(1)
    with refused(WeightsError, "parameter .* is unexpected in the saved state", clip):
        trainer.load_state_dict(state)


@pytest.mark.parametrize("ids", [LAZY, NESTED, META[0, :2], 3])
def test_ids_that_cannot_be_counted(clip, teacher, ids):
    trainer = Trainer(clip, teacher)
    with pytest.raises((ShapeError, DataError), match="ids"):
        trainer.accumulate(images(2), ids=ids)
    with pytest.raises((ShapeError, DataError), match="ids"):
        trainer.accumulate({"images": images(2), "ids": ids})


@pytest.mark.parametrize("labels", [LAZY, META[0], NESTED, [[1], [1, 2]]])
def test_labels_that_hold_no_numbers(clip, labels):
    batches = [(images(2), labels)]
    with pytest.raises(DataError, match="train, batch 0: the labels are "):
        evaluation.linear_probe(clip, batches, batches, ["pooled"])


@pytest.mark.parametrize("batches", [torch.float16, torch.zeros(2, 3), LAZY, "folder", None])
def test_a_probe_reads_batches_alone(clip, batches):
    with pytest.raises(ConfigError, match=r"test=.*an iterable of batches \(pixels, labels\) is needed"):
        evaluation.linear_probe(clip, [], batches, ["pooled"])


@pytest.mark.parametrize("progress", [np.zeros(2), torch.zeros(3), "no"])
def test_progress_is_a_flag(clip, tmp_path, progress):
    own = {"preprocess": center_transform(32), "tokenizer": lambda texts: torch.ones(len(texts), 8).long()}
    with pytest.raises(ConfigError, match=r"progress=.*True or False is needed"):
        evaluation.mmvp_vlm(clip, **own, root=mmvp.mmvp_folder(tmp_path, pairs=1), progress=progress)


def test_mcnemar_of_huge_counts():
    for count in (100_001, 2**64 - 1, np.uint64(2**64 - 1), ENDLESS):
        with pytest.raises(ConfigError, match=r"lost=.*at most 100000 is needed"):
            evaluation.mcnemar_exact(3, count)
    assert evaluation.mcnemar_exact(0, 100_000) == 0.0
    assert evaluation.mcnemar_exact(50_000, 50_000) == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (1, 0), (10, 2), (3, 40), (499, 561), (800, 1000)])
def test_mcnemar_is_the_sum_over_the_tail(gained, lost):
    flips = gained + lost
    tail = sum(comb(flips, k) for k in range(min(gained, lost) + 1))
    exact = float(min(Fraction(1), Fraction(2 * tail, 1 << flips)))
    assert evaluation.mcnemar_exact(gained, lost) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_folder_without_a_name_is_not_replaced(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be replaced: give the name of a file"):
        evaluations.folder(9).to_csv(path)
    assert not list(tmp_path.iterdir())


def test_a_state_is_not_written_over_the_working_folder(clip, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be replaced: give the name of a file or folder in it"):
        save_state(".", Trainer(clip, teacher).state_dict())


def few_words(call, kind, match):
    with pytest.raises(kind, match=match) as caught:
        call()
    assert len(str(caught.value)) < 400


def test_long_values_are_shown_in_part(clip):
    long = "x" * 10_000
    few_words(lambda: interpolate(clip, long, 0.5), ConfigError, "after='x+\\.\\.\\.: no file can have that")
    few_words(lambda: interpolation_sweep(clip, clip, long), ConfigError, "metrics is 'x+\\.\\.\\.: give")
    few_words(lambda: interpolate({long: 3}, {}, 0.5), WeightsError, "before: entry 'x+\\.\\.\\. is a int")
    few_words(lambda: evaluation.image_features(clip, images(2), long), ConfigError, "features=.*known are")


def test_endless_numbers_are_not_printed(clip):
    few_words(lambda: evaluation.Drift(clip, images(2), ENDLESS), ConfigError, "features=.*known are")
    few_words(lambda: evaluation.image_embedding(ENDLESS), ConfigError, "embedding=<int> is not known")
    few_words(lambda: Recipe(steps=ENDLESS), ConfigError, "steps.*below 2\\*\\*63 is needed")


def test_values_that_cannot_be_printed_get_no_hint():
    few_words(lambda: Recipe(precision=Unprintable()), ConfigError, "precision.*one of")


@pytest.mark.parametrize("odd", [LAZY, NESTED, META])
def test_weights_of_odd_tensors_are_not_mixed(odd):
    for before, after in (({"w": odd}, {"w": torch.zeros(2, 3)}), ({"w": torch.zeros(2, 3)}, {"w": odd})):
        with pytest.raises(WeightsError, match=r"entry 'w' is <.*it holds no plain values"):
            interpolate(before, after, 0.5)


@pytest.mark.parametrize("make", [clip_input, vae_input])
@pytest.mark.parametrize(
    "odd",
    [torch.zeros(768), torch.zeros(3, 8, 8), torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 8, 8).int()],
    ids=["flat", "one image", "four channels", "whole numbers"],
)
def test_only_images_are_resampled(make, odd):
    recipe = SimpleNamespace(pixels="unit", vae_pixels="symmetric", resize="bicubic", antialias=True)
    with pytest.raises(ShapeError, match=r"`images` (has shape|is Int)"):
        make(odd, recipe, (16, 16), HALF, HALF)


@pytest.mark.parametrize(
    "odd",
    [
        {"guard": {"a": ENDLESS}},
        {"guard": {"a": (np.zeros(2), 3)}},
        {"guard": np.zeros(2)},
        {"best": ("a", np.zeros(2))},
        {"eval_every": ENDLESS * -1},
    ],
    ids=["endless bound", "array of bounds", "array", "array of directions", "endless interval"],
)
def test_what_a_run_is_measured_by(clip, teacher, odd):
    with pytest.raises(ConfigError, match=f"{next(iter(odd))}=.* is needed"):
        post_train(clip, teacher, [images(2)], evaluate=lambda clip: 1.0, progress=False, **odd)


def test_conditions_of_a_teacher_by_the_wrong_type(teacher):
    with pytest.raises(ConfigError, match="label is array"):
        Teacher(teacher.unet, label=np.zeros(2))
    with pytest.raises(ConfigError, match="added_cond_kwargs is a ndarray: a mapping of names to tensors"):
        Teacher(teacher.unet, added_cond_kwargs=np.zeros(2))


@pytest.mark.parametrize("alphas", [float("nan"), None, "0.5", 0.5, LAZY])
def test_alphas_are_several(clip, alphas):
    with pytest.raises(ConfigError, match=r"alphas=.*a list of numbers from 0 to 1 is needed"):
        interpolation_sweep(clip, clip, lambda clip: 1.0, alphas=alphas)


def test_alphas_may_be_an_array(clip):
    rows = interpolation_sweep(clip, clip, {"one": lambda clip: 1.0}, alphas=np.linspace(0, 1, 3)).rows
    assert [row["alpha"] for row in rows] == [0.0, 0.5, 1.0]


def test_a_dtype_that_safetensors_does_not_have(tmp_path):
    with pytest.raises(WeightsError, match=r"weights of torch.complex128, a dtype that safetensors"):
        save_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [(torch.nn.Linear(2, 2), "the tokenizer does not take texts"), (len, "the tokenizer gave .*int")],
    ids=["a layer", "len"],
)
def test_a_tokenizer_that_does_not_tokenize(clip, tokenizer, match):
    embedder = evaluation.Embedder(clip, center_transform(32), tokenizer)
    with pytest.raises(DataError, match=match):
        embedder.tokenize(["a", "b"])
