"""Draws have the distributions they claim.

Seeds are fixed, so every test here is deterministic. A goodness-of-fit test passes with p > P = 0.001: right
numbers would fail it for one seed in a thousand. Moments must lie within 4 standard errors.
"""

import math

import numpy as np
import pytest
from scipy import stats

from diva_rs.step.draws import DrawPlan

pytestmark = pytest.mark.invariant

P = 1e-3


def uniform(counts):
    """Chi-square of equally likely bins. At least 20 expected in each."""
    assert np.min(np.mean(counts)) >= 20
    return stats.chisquare(counts).pvalue > P


def noise(seed=11):
    return DrawPlan(seed, 2, (4, 64, 64)).draw(range(32)).noise.astype(np.float64).ravel()  # 2**20 values


def test_noise_moments():
    values = noise()
    n = values.size
    # Standard errors of the estimators for normal samples: 1/n, 2/n, 6/n, 24/n under the root.
    assert abs(values.mean()) < 4 * math.sqrt(1 / n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(values)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(values)) < 4 * math.sqrt(24 / n)


def test_noise_is_normal():
    values = noise()
    assert stats.kstest(values, "norm").pvalue > P
    assert uniform(np.histogram(stats.norm.cdf(values), bins=1000, range=(0, 1))[0])


@pytest.mark.parametrize("edge", [3.0, 4.0])
def test_noise_has_normal_tails(edge):
    values = noise()
    for beyond in (values > edge, values < -edge):
        assert stats.binomtest(int(beyond.sum()), values.size, stats.norm.sf(edge)).pvalue > P


def test_noise_is_white():
    values = noise().reshape(-1, 64)
    n = values.size
    # Neighbours, the two halves of a block (which share a radius), rows and blocks: values and their squares.
    for lag in (1, 2, 31, 32, 33, 63, 64, 65, 4096):
        for series in (values.ravel(), values.ravel() ** 2 - 1):
            scale = series.var()
            assert abs((series[lag:] * series[:-lag]).mean() / scale) < 4 / math.sqrt(n), lag


def test_pairs_are_isotropic():
    blocks = noise().reshape(-1, 64)
    # Values that share a random word, and values that do not.
    for first, second in ((blocks[:, :32], blocks[:, 32:]), (blocks[:, ::2], blocks[:, 1::2])):
        angles = np.arctan2(first, second).ravel()
        assert uniform(np.histogram(angles, bins=360, range=(-math.pi, math.pi))[0])


def test_uniform_timesteps():
    drawn = DrawPlan(1, 3, (1,), timestep_range=(20, 520)).draw(range(20_000)).timesteps
    for index in range(3):
        assert uniform(np.bincount(drawn[:, index] - 20, minlength=500))
    # Pairs of draws of a sample: independent, 10 x 10 cells.
    cells = (drawn[:, 0] - 20) // 50 * 10 + (drawn[:, 1] - 20) // 50
    assert uniform(np.bincount(cells, minlength=100))


def test_uniform_timesteps_over_epochs():
    plan = DrawPlan(1, 1, (1,), timestep_range=(0, 10))
    assert uniform(
        np.bincount([plan.draw([5], epoch).timesteps.item() for epoch in range(2000)], minlength=10)
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.5, 0.5), (2.0, 3.0)])
def test_logit_normal_timesteps(mean, std):
    fine = 2**31  # steps so small that the distribution is as good as continuous
    plan = DrawPlan(
        2, 2, (1,), timesteps="logit-normal", timestep_range=(0, fine), logit_mean=mean, logit_std=std
    )
    share = (plan.draw(range(10_000)).timesteps.ravel() + 0.5) / fine
    assert stats.kstest(np.log(share / (1 - share)), stats.norm(mean, std).cdf).pvalue > P


def test_logit_normal_timesteps_on_a_coarse_range():
    drawn = (
        DrawPlan(3, 2, (1,), timesteps="logit-normal", timestep_range=(100, 110))
        .draw(range(20_000))
        .timesteps
    )
    edges = np.linspace(0, 1, 11)
    with np.errstate(divide="ignore"):
        shares = np.diff(stats.norm.cdf(np.log(edges / (1 - edges))))
    counts = np.bincount(drawn.ravel() - 100, minlength=10)
    assert stats.chisquare(counts, shares * counts.sum()).pvalue > P


def test_no_draw_and_no_sample_is_tied_to_a_stratum():
    batch, draws, epochs = 4, 3, 6000
    plan = DrawPlan(5, draws, (1,), timesteps="stratified", timestep_range=(0, 1200))
    drawn = np.stack([plan.draw(range(batch), epoch).timesteps for epoch in range(epochs)])
    for sample in range(batch):
        for index in range(draws):
            assert uniform(np.bincount(drawn[:, sample, index] // 100, minlength=12)), (sample, index)
    # Within the strata the place is uniform too.
    assert uniform(np.bincount(drawn.ravel() % 100, minlength=100))
    # Two samples of a batch fall into any two strata of a block alike: 4 * 3 ordered pairs.
    first = drawn[(drawn[:, 0, 0] // 400 == 0) & (drawn[:, 1, 0] // 400 == 0)][:, :2, 0] // 100
    pairs = np.bincount(first[:, 0] * 4 + first[:, 1], minlength=16).reshape(4, 4)
    assert np.diag(pairs).sum() == 0
    assert uniform(pairs[~np.eye(4, dtype=bool)])


def test_strata_narrow_the_mean():
    def spread(timesteps):
        plan = DrawPlan(6, 2, (1,), timesteps=timesteps)
        return np.std([plan.draw(range(8), epoch).timesteps.mean() for epoch in range(300)])

    # Stratified sampling divides the standard error of a linear function by the number of strata, 16.
    assert spread("stratified") < spread("uniform") / 8


def test_tokens_with_replacement():
    tokens = DrawPlan(7, 2, (1,), patches=50, choose=20, replacement=True).draw(range(2000)).tokens
    assert uniform(np.bincount(tokens.ravel(), minlength=50))
    for place in (0, 7, 19):
        assert uniform(np.bincount(tokens[..., place].ravel(), minlength=50))
    distinct = np.array([len(set(row)) for row in tokens.reshape(-1, 20)])
    expected = 50 * (1 - (1 - 1 / 50) ** 20)
    assert abs(distinct.mean() - expected) < 4 * distinct.std() / math.sqrt(distinct.size)


def test_tokens_without_replacement():
    tokens = DrawPlan(8, 2, (1,), patches=50, choose=20).draw(range(2000)).tokens
    assert all(len(set(row)) == 20 for row in tokens.reshape(-1, 20))
    for place in range(20):
        assert uniform(np.bincount(tokens[..., place].ravel(), minlength=50))


def test_every_ordered_choice_is_equally_likely():
    tokens = DrawPlan(9, 1, (1,), patches=5, choose=3).draw(range(12_000)).tokens[:, 0]
    counts = np.bincount(tokens @ [25, 5, 1], minlength=125)
    orders = counts[counts > 0]
    assert len(orders) == 5 * 4 * 3 and uniform(orders)


def test_choosing_all_is_a_permutation():
    tokens = DrawPlan(10, 1, (1,), patches=4, choose=4).draw(range(5000)).tokens[:, 0]
    orders = np.unique(tokens, axis=0, return_counts=True)[1]
    assert len(orders) == 24 and uniform(orders)


@pytest.mark.parametrize("density", [0.0, 0.15, 0.5, 1.0])
def test_bernoulli_density(density):
    tokens = DrawPlan(11, 2, (1,), patches=40, density=density).draw(range(3000)).tokens
    kept = tokens >= 0
    assert np.array_equal(tokens, np.where(kept, np.arange(40), -1))
    if density in (0.0, 1.0):
        assert kept.mean() == density
    else:
        assert stats.binomtest(int(kept.sum()), kept.size, density).pvalue > P
        assert uniform(kept.sum(axis=(0, 1)))
        per_row = np.bincount(kept.sum(axis=2).ravel(), minlength=41)
        expected = stats.binom.pmf(np.arange(41), 40, density) * per_row.sum()
        common = expected > 20
        observed = np.append(per_row[common], per_row[~common].sum())
        assert stats.chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > P
