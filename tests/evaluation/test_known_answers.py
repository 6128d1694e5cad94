"""Every measure where its answer is known, and how often its 95 % interval holds it."""

import numpy as np
import pytest
import torch

from cond_pipelines.evaluation import kernels, probes
from cond_pipelines.evaluation import measures as m
from cond_pipelines.evaluation.questions import distribution_rows


def normal(n, dim=8, mean=0.0, std=1.0, seed=0):
    return (mean + std * np.random.default_rng(seed).standard_normal((n, dim))).astype(np.float32)


# ------------------------------------------------------------------------------------------------ known answers
def test_mmd_is_the_definition():
    """Of more rows than a block holds; CMMD's kernel has sigma = 10 and scale 1000, of vectors of length 1."""
    x, y = normal(300, 5, seed=1).astype(np.float64), normal(2300, 5, 0.3, seed=2).astype(np.float64)

    def of_cmmd(a, b):
        a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
        return 1000 * np.exp(-np.square(a[:, None] - b[None]).sum(axis=-1) / (2 * 10**2))

    def of_kid(a, b):
        return (a @ b.T / 5 + 1) ** 3

    for mine, theirs in ((kernels.gaussian, of_cmmd), (kernels.polynomial, of_kid)):
        xx, yy, xy = theirs(x, x), theirs(y, y), theirs(x, y)
        for k in (xx, yy):
            np.fill_diagonal(k, 0)
        expected = xx.sum() / (300 * 299) + yy.sum() / (2300 * 2299) - 2 * xy.mean()
        assert kernels.mmd(x, y, mine)[0] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    with pytest.raises(ValueError, match="two images at least"):
        kernels.mmd(x[:1], y, kernels.gaussian)


def test_mmd_is_unbiased_with_few_samples():
    """The mean over many small sets of the same distribution is 0."""
    for kernel in (kernels.gaussian, kernels.polynomial):
        values = [kernels.mmd(normal(20, seed=i), normal(20, seed=1000 + i), kernel)[0] for i in range(300)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5
        assert min(values) < 0


@pytest.mark.parametrize("different", [1, 3, 10])
def test_the_vendi_score_counts_different_images(different):
    """K sorts of images at right angles to each other, as often: K. Eigenvalues are those of the N x N matrix."""
    x = np.eye(16)[np.arange(240) % different]
    assert kernels.vendi(x)[0] == pytest.approx(different)
    x = normal(40, 6)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 40)
    values = values[values > 1e-9]
    assert kernels.vendi(x)[0] == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-5)


def test_a_share_without_a_sample_is_what_it_says():
    """Coverage: deleted one by one, by brute force."""
    real, fake = normal(60, 3, seed=1), normal(12, 3, mean=0.5, seed=2)
    whole = m.manifolds(real, fake)
    for i in range(len(fake)):
        less = m.manifolds(real, np.delete(fake, i, axis=0))["coverage"].mean()
        assert whole["coverage"].mean() - less == pytest.approx(whole["coverage by"][i])


def test_frechet_of_normal_features_is_the_closed_form():
    """Estimated from samples: |m|^2 + |s - 1|^2, within its interval, which is narrow."""
    real = m.Gaussian.of(normal(100_000, 4, seed=1))
    fake = normal(20_000, 4, seed=2) * [1, 2, 0.5, 1] + [0, 1, 0, -2]
    fake = fake.astype(np.float32)
    low, high = m.interval_of_frechet(fake, real)
    expected = 5 + 1 + 0.25
    assert low < expected < high and high - low < 0.4


def rows_of(fake, train, held_out):
    return {row["name"]: row for row in distribution_rows(fake, train, held_out)[0]}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2])
def test_planted_copies_are_counted(share):
    """0, 1, 5, 20 % of the samples are training images, slightly changed; of new images one in a hundred is flagged."""
    train, held_out, fake = (normal(n, seed=seed) for n, seed in ((3000, 1), (3000, 2), (3000, 3)))
    count = int(share * len(fake))
    fake[:count] = train[:count] + 1e-3 * normal(count, seed=4)
    row = rows_of(fake, train, held_out)["closer to a training image than 99 % of held-out ones"]
    assert row["value"] == pytest.approx(share + (1 - share) * 0.01, abs=0.006)
    assert row["interval"][0] <= row["value"] <= row["interval"][1]


def test_dropped_modes():
    """Half of eight modes: recall, coverage and the Vendi score fall by half; precision does not."""

    def modes(which, n, seed):
        rng = np.random.default_rng(seed)
        return (20 * np.eye(8)[rng.choice(which, n)] + 0.1 * rng.standard_normal((n, 8))).astype(np.float32)

    train, held_out = modes(range(8), 2000, 1), modes(range(8), 2000, 2)
    whole, half = (rows_of(modes(range(k), 2000, 3), train, held_out) for k in (8, 4))
    for name in ("recall", "coverage", "Vendi score"):
        assert half[name]["value"] == pytest.approx(0.5 * whole[name]["value"], rel=0.1), name
        assert whole[name]["value"] == pytest.approx(whole[name]["real"], rel=0.1), name
    assert half["precision"]["value"] > 0.9
    for name in ("Frechet distance", "kernel distance", "CMMD"):
        assert half[name]["interval"][0] > whole[name]["interval"][1], name


# ------------------------------------------------------------------------------------------------------- coverage
_SIMULATIONS = 200
_REAL = normal(400, 4, seed=999)
_OF_REAL = m.Gaussian.of(_REAL)
_RADIUS = m.radius(_REAL)


def fake_of(seed):
    return normal(150, 4, mean=0.3, seed=seed)


def of_mmd(kernel):
    def measured(seed):
        value, error = kernels.mmd(fake_of(seed), _REAL, kernel)
        return value, (value - 1.96 * error, value + 1.96 * error)

    return measured


def of_frechet(seed):
    x = fake_of(seed)
    return m.frechet_distance(m.Gaussian.of(x), _OF_REAL), m.interval_of_frechet(x, _OF_REAL)


def of_manifold(name):
    def measured(seed):
        values = m.manifolds(_REAL, fake_of(seed), real_radius=_RADIUS)[name]
        return values.mean(), m.interval_of_mean(values, resamples=300)

    return measured


def of_share(name):
    def measured(seed):
        values = m.manifolds(_REAL, fake_of(seed), real_radius=_RADIUS)
        share = values[name].mean()
        return share, m.interval_of_share(share, values[f"{name} by"])

    return measured


def of_vendi(seed):
    value, error = kernels.vendi(fake_of(seed))
    return value, (value - 1.96 * error, value + 1.96 * error)


def of_accuracy(seed):
    right = (np.random.default_rng(seed).random(150) < 0.8).astype(float)
    return right.mean(), m.interval_of_mean(right, resamples=300)


def of_auc(seed):
    rng = np.random.default_rng(seed)
    has = rng.random((150, 1)) < 0.4
    scores = rng.standard_normal((150, 1)) + has
    return probes.mean_auc(has, scores), m.interval_of(probes.mean_auc, has, scores, resamples=100, high=1.0)


def of_correlation(seed):
    a = normal(150, 2, seed=seed)
    b = a + normal(150, 2, seed=seed + 10**6)
    ends = m.interval_of(probes.mean_correlation, a, b, resamples=100, low=-1.0, high=1.0)
    return probes.mean_correlation(a, b), ends


def of_imbalance(seed):
    read, frequency = np.random.default_rng(seed).choice(3, size=150, p=[0.6, 0.3, 0.1]), np.full(3, 1 / 3)
    value = probes.imbalance(read, frequency)
    return value, m.interval_of(lambda x: probes.imbalance(x, frequency), read, resamples=100, high=1.0)


MEASURED = {
    "Frechet distance": of_frechet,
    "kernel distance": of_mmd(kernels.polynomial),
    "CMMD": of_mmd(kernels.gaussian),
    "precision": of_manifold("precision"),
    "density": of_manifold("density"),
    "recall": of_share("recall"),
    "coverage": of_share("coverage"),
    "Vendi score": of_vendi,
    "class read right": of_accuracy,
    "AUC of labels": of_auc,
    "correlation": of_correlation,
    "class imbalance": of_imbalance,
}


@pytest.mark.parametrize("name", MEASURED)
def test_intervals_hold_the_value_that_the_samples_have_on_average(name):
    """95 % of them, of 200 sets of samples: between 90 and 99 %."""
    torch.manual_seed(0)
    values, ends = zip(*(MEASURED[name](seed) for seed in range(_SIMULATIONS)), strict=True)
    truth = np.mean(values)
    share = np.mean([low <= truth <= high for low, high in ends])
    assert 0.90 <= share <= 0.99, share
