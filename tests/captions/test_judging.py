"""Losses of captions against plain loops; draws, splits and early stop; coordinate descent."""

import copy
import warnings
import zlib

import numpy as np
import pytest
import torch

import diva_rs
from builders.changes import relative_error
from builders.diffusion import (
    TEXT_WIDTH,
    direct_call,
    tiny_dit,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
)
from diva_rs._native import Schedule
from diva_rs.captions import Attribute, ContrastSet, Judge, Vocabulary
from diva_rs.errors import ConfigError, DataError, ShapeError

KEYS = [5, 2**64 - 1, 0]
COLOURS = ContrastSet("colour", ("a red car", "a blue car", "a car"), ("red", "blue", "none"))
SIZES = ContrastSet("size", ("a red car", "a big car"), ("unsaid", "big"))
SETS = [[COLOURS, SIZES], [], [SIZES]]
WORDS = Vocabulary(
    {
        "colour": ("red", "blue", "green"),
        "size": Attribute(("big", "small"), phrase="that is {}"),
        "place": Attribute(("left", "right"), phrase="on the {}"),
    },
    templates=("a photo of {}", "{}, a photo"),
    subjects=("cat", "dog"),
)


def encoder(width=TEXT_WIDTH, length=5, calls=None):
    """Texts -> tokens (M, L, C) that are functions of each text; ``calls`` records how many were encoded."""

    def encode(texts):
        if calls is not None:
            calls.append(list(texts))
        seeds = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in texts]
        return torch.stack(
            [torch.randn(length, width, generator=seed, dtype=torch.float64) for seed in seeds]
        )

    return encode


def latents(count=3, channels=4, dtype=torch.float64):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def plain(kind, unet, scheduler, images, each, encode, draws, distance):
    """One image, caption and draw at a time, by diffusers alone."""
    found = []
    for image, key, sets in zip(images, KEYS, each, strict=True):
        drawn = diva_rs.draw(3, [key], draws, tuple(image.shape))
        found.append([])
        for of in sets:
            losses = torch.zeros(len(of), draws, dtype=torch.float64)
            for row, caption in enumerate(of.captions):
                for n in range(draws):
                    noise = torch.from_numpy(drawn.noise[:, n]).to(images)
                    timestep = torch.from_numpy(drawn.timesteps[:, n])
                    noisy = scheduler.add_noise(image[None], noise, timestep)
                    target = noise
                    if scheduler.config.prediction_type == "v_prediction":
                        target = scheduler.get_velocity(image[None], noise, timestep)
                    predicted = direct_call(kind, unet, noisy, timestep, encode([caption]).to(images), None)
                    losses[row, n] = distance(predicted, target)
            found[-1].append(losses)
    return found


def flat(found):
    return torch.cat(
        [torch.as_tensor(losses, dtype=torch.float64).flatten() for of in found for losses in of]
    )


@pytest.mark.parity
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "sdxl"])
@torch.no_grad()
def test_losses_are_those_of_a_plain_loop(kind, backend, precision):
    unet, scheduler = tiny_unet(kind), tiny_scheduler(kind)
    encode = encoder(unet.config.cross_attention_dim)
    distance = torch.nn.functional.l1_loss if kind == "sd1" else torch.nn.functional.mse_loss
    expected = plain(kind, copy.deepcopy(unet).double(), scheduler, latents(), SETS, encode, 3, distance)
    teacher = diva_rs.Teacher(unet, vae=tiny_vae(), scheduler=scheduler).to_precision(precision)
    loss = "l1" if kind == "sd1" else "mse"
    judge = Judge(teacher, draws=3, backend=backend, batch=5, seed=3, loss=loss, encode=encode)
    found = judge.losses(latents(), KEYS, SETS, range(3))
    assert [[losses.shape for losses in of] for of in found] == [[(3, 3), (2, 3)], [], [(2, 3)]]
    assert found[0][0].dtype == (np.float64 if precision == "fp64" else np.float32)
    assert relative_error(flat(found), flat(expected)) <= (1e-10 if precision == "fp64" else 1e-5)


@pytest.mark.parametrize("kind", ["dit", "flow"])
@torch.no_grad()
def test_every_family_that_reads_a_condition_judges(kind):
    """A pooled condition, and flow matching by a function, against the teacher itself."""
    if kind == "dit":
        teacher = diva_rs.Teacher(tiny_dit().double(), scheduler=tiny_scheduler())
    else:
        teacher = diva_rs.Teacher(
            predict=lambda noisy, timesteps, condition: (
                noisy * condition.pooled.mean(1).view(-1, 1, 1, 1) + timesteps.view(-1, 1, 1, 1)
            ),
            scheduler=Schedule.flow(torch.linspace(0.01, 1, 100, dtype=torch.float64)),
            latent_shape=(4, 8, 8),
            condition_width=TEXT_WIDTH,
        ).to_precision("fp64")
    encode = encoder(teacher.condition_width)
    judge = Judge(teacher, draws=2, encode=encode, timestep_range=(20, 60))
    found = judge.losses(latents(), KEYS, [[SIZES]] * 3, range(2))
    plan = diva_rs.DrawPlan(0, 2, (4, 8, 8), 0, timestep_range=(20, 60))
    for image, key, [losses] in zip(latents(), KEYS, found, strict=True):
        timesteps, noise, _ = plan.draw([key]).tensors(image)
        for row, caption in enumerate(SIZES.captions):
            noisy, target, steps = teacher.schedule.add_noise(
                image.expand(2, -1, -1, -1), noise[0], timesteps[0]
            )
            for n in range(2):
                part = slice(n, n + 1)
                predicted = teacher.denoise(noisy[part], steps[part], encode([caption]))
                expected = (predicted - target[part]).square().mean().item()
                assert losses[row, n] == pytest.approx(expected, rel=1e-12)


@pytest.fixture(scope="module")
def teacher():
    return diva_rs.Teacher(tiny_unet(), scheduler=tiny_scheduler()).to_precision("fp64")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        for mine, other in zip(ours.evidence[key], theirs.evidence[key], strict=True):
            assert mine.set == other.set and mine.settled == other.settled
            np.testing.assert_allclose(mine.losses, other.losses, rtol=1e-10)


@pytest.mark.invariant
@pytest.mark.parametrize("batch", [None, 1, 7])
def test_judgements_do_not_depend_on_how_images_are_batched(teacher, batch):
    images, keys = latents(5), [9, 4, 7, 1, 2**63]
    make = lambda batch: Judge(teacher, draws=8, settle=1.0, batch=batch, encode=encoder())  # noqa: E731
    whole = make(None).describe(images, keys, WORDS)
    assert len({each.losses.shape[1] for sets in whole.evidence.values() for each in sets}) > 1
    judge = make(batch)
    parts = {}
    for part in (slice(3, 5), slice(0, 1), slice(1, 3)):
        parts |= judge.describe(images[part], keys[part], WORDS).evidence
    same(diva_rs.captions.Judgements(parts, WORDS), whole)


def test_draws_replay_and_further_ones_continue_them(teacher):
    judge = Judge(teacher, draws=4, encode=encoder())
    whole = judge.losses(latents(), KEYS, SETS, range(4))
    parts = [judge.losses(latents(), KEYS, SETS, draws) for draws in (range(1), range(1, 4))]
    for all_draws, first, rest in zip(whole, *parts, strict=True):
        for losses, left, right in zip(all_draws, first, rest, strict=True):
            np.testing.assert_allclose(losses, np.concatenate([left, right], 1), rtol=1e-12)
    other = Judge(teacher, draws=4, seed=1, encode=encoder()).losses(latents(), KEYS, SETS, range(4))
    assert not np.allclose(flat(other), flat(whole), rtol=1e-3)


def test_easy_sets_take_few_draws():
    """A caption that adds to every prediction is far from the best; one that adds little is not."""

    def encode(texts):
        added = {"a red car": 0.0, "a blue car": 3.0, "a car": 1e-9}
        return torch.tensor([added[text] for text in texts]).view(-1, 1, 1).expand(-1, 1, 8)

    teacher = diva_rs.Teacher(
        predict=lambda noisy, timesteps, condition: condition.pooled[:, :1, None, None] + 0 * noisy,
        scheduler=tiny_scheduler(),
        latent_shape=(4, 8, 8),
        condition_width=8,
    )
    judge = Judge(teacher, draws=16, first=3, encode=encode)
    easy = ContrastSet("colour", ("a red car", "a blue car"))
    hard = ContrastSet("mention", ("a red car", "a car"))
    judged = judge.judge(latents(dtype=torch.float32), KEYS, [[easy, hard]] * 3)
    for key in KEYS:
        first, _ = judged[key]
        assert (first.draws, first.settled, first.best) == (3, True, 0)
        assert judged[key][1].draws > 3
        # What was measured for one set is what the other has.
        np.testing.assert_array_equal(
            judged.evidence[key][0].losses[0], judged.evidence[key][1].losses[0, :3]
        )


@torch.no_grad()
def test_descent_judges_each_name_with_the_other_values_as_they_stand(teacher):
    calls = []
    judge = Judge(teacher, draws=4, first=4, encode=encoder(calls=calls))
    start = [{"subject": "dog", "colour": "red", "size": "small", "place": "left"}] * 3
    judged = judge.describe(latents(), KEYS, WORDS, start, rounds=1, names=WORDS.names())
    for image, key in enumerate(KEYS):
        values = dict(start[image])
        for name, each in zip(WORDS.names(), judged.evidence[key], strict=True):
            assert each.set == WORDS.set_of(name, values)
            # The odd draws read the captions with their phrases in reverse, in the second template.
            order, words = ["place", "size", "colour"], WORDS.words(name)
            reworded = [WORDS.caption({**values, name: word}, order, template=1) for word in words]
            for half, captions in enumerate((each.set.captions, tuple(reworded))):
                sets = [[ContrastSet(name, captions)]]
                [[losses]] = judge.losses(latents()[image : image + 1], [key], sets, range(half, 4, 2))
                np.testing.assert_allclose(each.losses[:, half::2], losses, rtol=1e-12)
            values[name] = each.set.words[each.losses.mean(1).argmin()]
    texts = [text for call in calls for text in call]
    assert len(texts) == len(set(texts))  # each distinct caption is encoded once
    again = judge.describe(latents(), KEYS, WORDS, start, rounds=30, names=WORDS.names())
    last = [each.set for each in again.evidence[0]]
    values = {each.set.name: each.set.words[each.losses.mean(1).argmin()] for each in again.evidence[0]}
    assert last == [WORDS.set_of(name, values) for name in WORDS.names()]  # it has converged


def test_names_that_are_not_judged_keep_their_value(teacher):
    judge = Judge(teacher, draws=2, encode=encoder())
    judged = judge.describe(latents(1), [7], WORDS, [{"subject": "dog"}])
    assert [each.set.name for each in judged.evidence[7]] == [*WORDS.attributes]
    judged = judge.describe(latents(1), [7], WORDS, [{"subject": "dog"}], names=["size"])
    assert judged.evidence[7][0].set == WORDS.set_of("size", {"subject": "dog"})
    assert judged.values(7)["subject"] == "dog"


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_texts_are_those_of_one_prompt_at_a_time(kind):
    teacher = diva_rs.Teacher.of(tiny_pipeline(kind))
    prompts = ["a photo of a cat.", "", *(f"{number} cats" for number in range(70)), "a " * 100]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = teacher.texts(prompts)
        expected = torch.cat([teacher.text(prompt) for prompt in prompts])
    assert found.shape == (73, 77, teacher.condition_width) and not found.requires_grad
    assert relative_error(found, expected) <= 1e-5
    assert sum("cut off" in str(warning.message) for warning in caught) == 2 * len(
        teacher.family.text_encoders
    )
    colours = [[COLOURS]]
    judged = Judge(teacher, draws=2).judge(latents(1, dtype=torch.float32), [3], colours)
    given = Judge(teacher, draws=2, encode=teacher.texts).judge(latents(1, dtype=torch.float32), [3], colours)
    same(judged, given)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"draws": 1}, "draws=1, first=2"),
        ({"first": 1}, "first=1"),
        ({"first": 9}, "first=9"),
        ({"settle": float("nan")}, "settle"),
        ({"loss": "huber"}, "loss"),
        ({"timestep_range": (0, 1001)}, "1000 timesteps"),
        ({"timestep_range": (5, 5)}, "timestep_range"),
        ({"batch": 0}, "denoiser_batch"),
    ],
)
def test_wrong_settings_are_named(teacher, settings, what):
    with pytest.raises(ConfigError, match=what):
        Judge(teacher, encode=encoder(), **settings)


def test_wrong_inputs_are_named(teacher):
    judge = Judge(teacher, draws=2, encode=encoder())
    with pytest.raises(DataError, match="key 5 occurs twice"):
        judge.judge(latents(), [5, 4, 5], SETS)
    with pytest.raises(ShapeError, match="3 latents, 2 keys"):
        judge.judge(latents(), [5, 4], SETS)
    with pytest.raises(DataError, match=r"sample 0 under 'a red car' is not finite"):
        judge.judge(latents() * torch.tensor([1, 1, torch.nan]).view(-1, 1, 1, 1), KEYS, SETS)
    with pytest.raises(ConfigError, match="rounds"):
        judge.describe(latents(), KEYS, WORDS, rounds=0)
    with pytest.raises(ShapeError, match=r"encode gave \(2, 5, 23\)"):
        Judge(teacher, draws=2, encode=encoder(23)).judge(latents(1), [1], [[SIZES]])
    given = diva_rs.Teacher(
        tiny_unet(), scheduler=tiny_scheduler(), text_condition=torch.zeros(1, 5, TEXT_WIDTH)
    )
    for reader in (given, diva_rs.Teacher(tiny_dit(), scheduler=tiny_scheduler())):
        with pytest.raises(ConfigError, match=r"Judge\(teacher, encode=f\)"):
            Judge(reader, draws=2).judge(latents(1, dtype=torch.float32), [1], [[SIZES]])
