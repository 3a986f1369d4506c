"""Temperature, reliability and weights, on losses whose accuracy is known."""

import numpy as np
import pytest

from diva_rs.captions import ContrastSet, Evidence, Judgements, Vocabulary
from diva_rs.captions.posteriors import informs, posterior, reliability, settled, temperature
from diva_rs.errors import DataError

WORDS = ("left", "right", "up", "down")


def losses(images=400, draws=8, signal=1.0, noise=1.0, liking=0.0, seed=0):
    """Losses (K, draws) of images whose true captions are 0, 1, 2, ... in turn. The draws of an image share
    what they have in common, as the denoising loss does; ``liking`` lowers that of the first caption.
    """
    generator = np.random.default_rng(seed)
    found = []
    for image in range(images):
        each = (
            5 + 3 * generator.standard_normal(draws) + noise * generator.standard_normal((len(WORDS), draws))
        )
        each[image % len(WORDS)] -= signal
        each[0] -= liking
        found.append(each)
    return found


def accuracy(sets):
    """Of the halves of the draws."""
    halves = [
        each[:, half::2].mean(1).argmin() == i % len(each) for i, each in enumerate(sets) for half in (0, 1)
    ]
    return np.mean(halves)


@pytest.mark.parametrize("signal", [0.4, 1.0, 2.0])
def test_accuracy_is_estimated_without_labels(signal):
    sets = losses(signal=signal)
    found = reliability(sets, [WORDS] * len(sets))
    # Five standard errors of the agreement, on a scale that is steeper than that of the accuracy here.
    assert found.accuracy == pytest.approx(accuracy(sets), abs=5 * 0.5 / np.sqrt(len(sets)))
    assert found.interval[0] <= found.accuracy <= found.interval[1]
    assert found.images == 400 and found.chance == 0.25
    assert found.above == (signal >= 1)  # little agreement may be of errors that both halves share
    assert found.weight == (pytest.approx((found.accuracy - 0.25) / 0.75) if found.above else 0)


@pytest.mark.parametrize("liking", [0.0, 0.5, 50.0])
def test_without_signal_the_weight_is_zero(liking):
    """A model that likes one word agrees with itself, and yet sees nothing."""
    sets = losses(signal=0.0, liking=liking)
    found = reliability(sets, [WORDS] * len(sets))
    assert found.agreement > 0.9 or liking < 50
    assert not found.above and found.weight == 0.0


def test_sets_that_were_settled_early_prove_nothing():
    """Without signal, sets whose first two draws agree with each other by chance take no more."""
    sets = losses(images=4000, signal=0.0)
    early = [each[:, :2] if settled(each[:, :2], 1.0) else each for each in sets]
    found = reliability(early, [WORDS] * len(sets))
    assert found.agreement > 0.25 + 4 * np.sqrt(0.25 * 0.75 / len(sets))
    assert not found.above and found.weight == 0.0


def test_words_of_one_set_each_carry_no_liking():
    """The first caption is the true one of every set, as with hard negatives."""
    sets = [each[[i % 4, *({0, 1, 2, 3} - {i % 4})]] for i, each in enumerate(losses(signal=2.0))]
    words = [tuple(f"{word} {i}" for word in WORDS) for i in range(len(sets))]
    assert reliability(sets, words).accuracy > 0.9
    assert not reliability(sets, [WORDS] * len(sets)).above  # the same answer everywhere proves nothing


def test_temperature_makes_the_posterior_of_a_half_calibrated():
    """The likelihood of the other half's best caption is largest there."""
    sets = losses(images=2000)
    found = temperature(sets)

    def likelihood(temperature):
        pairs = [
            (each[:, half::2].mean(1), each[:, 1 - half :: 2].mean(1)) for each in sets for half in (0, 1)
        ]
        return np.mean([np.log(posterior(mine, temperature)[other.argmin()]) for mine, other in pairs])

    assert likelihood(found) > max(likelihood(0.8 * found), likelihood(1.25 * found))
    assert temperature([7 * each for each in sets]) == pytest.approx(7 * found)
    assert temperature([each + 9 for each in sets]) == pytest.approx(found)
    ragged = [*sets, *(each[:2] for each in sets)]
    assert likelihood(temperature(ragged)) > likelihood(3 * found)


def test_temperature_grows_with_disagreement():
    assert temperature(losses(noise=0.5)) < temperature(losses(noise=1.0)) < temperature(losses(noise=2.0))
    noise = losses(signal=0.0)
    assert max(posterior(noise[0].mean(1), temperature(noise))) < 0.3
    certain = losses(noise=0.01)
    assert min(posterior(each.mean(1), temperature(certain)).max() for each in certain) > 0.99


def test_a_set_is_settled_when_every_other_caption_is_worse():
    base = np.array([1.0, 4.0, 2.0, 3.0])
    clear = np.stack([base, base + 1 + 0.1 * base, base + 2 - 0.1 * base])
    assert settled(clear, 3.0)
    assert not settled(np.vstack([clear, base[::-1] + 0.01]), 3.0)
    assert not settled(clear[:, :1], 0.0)  # one draw has no error
    assert settled(clear + 1e3 * base, 3.0)  # what all captions share does not matter
    assert not settled(np.ones((2, 4)), 3.0)


def test_posteriors_sum_to_one_and_flat_ones_are_found():
    for each in losses(images=3):
        assert posterior(each.mean(1), 1e-9).tolist().count(1.0) == 1
        assert posterior(each.mean(1), 0.3).sum() == pytest.approx(1.0)
    assert informs(posterior(np.array([1.0, 2.0]), 1.0)) and not informs(np.full(7, 1 / 7))


def test_judgements_weigh_each_name_by_its_reliability():
    vocabulary = Vocabulary({"direction": WORDS, "side": WORDS}, subjects=("cat",))
    seen, unseen = losses(signal=2.0), losses(signal=0.0, seed=1)
    unseen[5][:] = seen[5]
    sets = {name: ContrastSet(name, WORDS) for name in ("direction", "side")}
    evidence = {
        key: [Evidence(sets["direction"], seen[key]), Evidence(sets["side"], unseen[key])]
        for key in range(400)
    }
    judged = Judgements(evidence, vocabulary, given={5: {"subject": "dog"}})
    direction, side = judged[5]
    assert direction.weight == judged.reliability["direction"].weight > 0.8 and side.weight == 0.0
    assert direction.best == direction.posterior.argmax() == 1 and direction.draws == 8
    assert judged.values(5) == {"subject": "dog", "direction": "right"}
    assert judged.values(np.uint64(6)) == {"subject": "cat", "direction": "up"}
    assert judged.temperatures == {
        "direction": temperature(seen),
        "side": pytest.approx(temperature(unseen)),
    }


def test_one_draw_has_no_halves():
    one = Evidence(ContrastSet("direction", WORDS), losses(images=1, draws=1)[0])
    with pytest.raises(DataError, match="no set 'direction' has two draws"):
        _ = Judgements({1: [one]})[1]
    two = Evidence(one.set, losses(images=1, draws=2)[0])
    assert Judgements({1: [one], 2: [two]})[1][0].draws == 1
