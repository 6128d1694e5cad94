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


@pytest.mark.parametrize("block", [2048, 16])
def test_a_share_without_a_sample_is_what_it_says(block, monkeypatch):
    """Deleted one by one, by brute force. Of recall the balls of the others grow; of coverage they are real images'."""
    monkeypatch.setattr(m, "_BLOCK", block)
    real, fake = normal(60, 5, seed=1), normal(20, 5, mean=1.0, seed=2)
    whole = m.manifolds(real, fake)
    assert min(whole["recall by"]) < 0 < max(whole["recall by"])
    for i in range(len(fake)):
        less = m.manifolds(real, np.delete(fake, i, axis=0))
        for name in ("recall", "coverage"):
            assert whole[name].mean() - less[name].mean() == pytest.approx(whole[f"{name} by"][i]), name


def test_an_area_without_an_image_is_what_it_says():
    """Also of images with the same score."""
    rng = np.random.default_rng(1)
    has = rng.random((30, 2)) < [0.3, 0.5]
    scores = has + rng.standard_normal((30, 2)).round(1)
    whole, falls = probes.mean_auc(has, scores), probes.auc_by(has, scores)
    for i in range(30):
        assert whole - probes.mean_auc(*(np.delete(x, i, axis=0) for x in (has, scores))) == pytest.approx(falls[i])


def test_the_interval_of_a_share_has_its_known_ends():
    """Equal parts: Wilson's for as many images. Where no sample moves the share, it has a width all the same."""
    for right, count in ((3, 50), (40, 50)):
        share = right / count
        falls = (np.repeat([1, 0], [right, count - right]) - share) / count
        low, high = m.interval_of_share(share, falls)
        ends = m.interval_of_mean(np.repeat([1.0, 0.0], [right, count - right]))
        assert low <= ends[0] + 1e-3 and high >= ends[1] - 1e-3 and high - low < 1.5 * (ends[1] - ends[0])
    assert m.wilson(0.4, 1.959964 * (0.4 * 0.6 / 50) ** 0.5) == pytest.approx(
        m.interval_of_mean(np.repeat([1.0, 0.0], [20, 30])), abs=1e-6
    )
    for share in (0.0, 0.48, 1.0):
        low, high = m.interval_of_share(share, np.zeros(50))
        assert 0 <= low <= share <= high <= 1 and high - low > 0.05
    assert m.interval_of_share(1.0, np.zeros(500), 10)[0] < 0.75 < m.interval_of_share(1.0, np.zeros(500))[0]


def test_the_interval_of_a_kernel_distance():
    """No distance is below 0; the estimate may be, and lies in it."""
    for value, error, ends in ((5, 1, (3.04, 6.96)), (1, 1, (0, 2.96)), (-1, 1, (-1, 0.96)), (-3, 1, (-3, 0))):
        assert kernels.interval_of_mmd(value, error) == pytest.approx(ends)


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


def of_mmd(kernel, mean=0.3):
    of_real = kernels.within_real(_REAL, kernel)

    def measured(seed):
        value, error = kernels.mmd(normal(150, 4, mean, seed=seed), _REAL, kernel, of_real)
        return value, kernels.interval_of_mmd(value, error)

    return measured


def of_frechet(seed):
    x = fake_of(seed)
    return m.frechet_distance(m.Gaussian.of(x), _OF_REAL), m.interval_of_frechet(x, _OF_REAL)


def of_manifold(name):
    def measured(seed):
        values = m.manifolds(_REAL, fake_of(seed), real_radius=_RADIUS)[name]
        return values.mean(), m.interval_of_mean(values, resamples=300)

    return measured


def of_share(name, dim=4, mean=0.3, num_real=400, count=150):
    """Far from the data few samples cover anything; in many dimensions a ball depends on few samples."""
    real = normal(num_real, dim, seed=999)
    reach = m.radius(real)

    def measured(seed):
        values = m.manifolds(real, normal(count, dim, mean, seed=seed), real_radius=reach)
        share = values[name].mean()
        return share, m.interval_of_share(share, values[f"{name} by"])

    return measured


def of_vendi(seed):
    value, error = kernels.vendi(fake_of(seed))
    return value, (value - 1.96 * error, value + 1.96 * error)


def of_accuracy(seed):
    right = (np.random.default_rng(seed).random(150) < 0.8).astype(float)
    return right.mean(), m.interval_of_mean(right, resamples=300)


def of_auc(count, share, gap):
    def measured(seed):
        rng = np.random.default_rng(seed)
        has = rng.random((count, len(share))) < share
        scores = rng.standard_normal(has.shape) + gap * has
        rarest = int(np.minimum(has.sum(axis=0), (~has).sum(axis=0)).min())
        value = probes.mean_auc(has, scores)
        return value, m.interval_of_share(value, probes.auc_by(has, scores), rarest)

    return measured


def of_correlation(seed):
    a = normal(150, 2, seed=seed)
    b = a + normal(150, 2, seed=seed + 10**6)
    ends = m.interval_of(probes.mean_correlation, a, b, resamples=100, low=-1.0, high=1.0)
    return probes.mean_correlation(a, b), ends


def of_imbalance(seed):
    read, frequency = np.random.default_rng(seed).choice(3, size=150, p=[0.6, 0.3, 0.1]), np.full(3, 1 / 3)
    value = probes.imbalance(read, frequency)
    return value, m.interval_of(lambda x: probes.imbalance(x, frequency), read, resamples=100, high=1.0)


def of_calibration(less):
    def measured(seed):
        rng = np.random.default_rng(seed)
        sure = rng.uniform(0.5, 1, 150)
        right = (rng.random(150) < sure - less).astype(float)
        ends = m.interval_of(probes.calibration_error, sure, right, resamples=100, high=1.0)
        return probes.calibration_error(sure, right), ends

    return measured


def of_copies(seed):
    flags, _, _ = m.copies(normal(300, 2, seed=seed), _REAL[:, :2], normal(400, 2, seed=998))
    return flags.mean(), m.interval_of_mean(flags.astype(float))


def of_bits(seed):
    bits = 3 + 0.8 * np.random.default_rng(seed).gamma(2, 0.5, 250)
    return bits.mean(), m.interval_of_mean(bits, resamples=300)


def of_retrieval(seed):
    """Captions that are mostly found, and a few that are not."""
    rng = np.random.default_rng(seed)
    wins = np.where(rng.random(150) < 0.1, rng.beta(2, 2, 150), 1 - 0.01 * (rng.random(150) < 0.3))
    return wins.mean(), m.interval_of_share(wins.mean(), (wins - wins.mean()) / 149)


def of_first(seed):
    first = (np.random.default_rng(seed).random(150) < 0.95).astype(float)
    return first.mean(), m.interval_of_mean(first)


MEASURED = {
    "Frechet distance": of_frechet,
    "kernel distance": of_mmd(kernels.polynomial),
    "CMMD": of_mmd(kernels.gaussian),
    "precision": of_manifold("precision"),
    "density": of_manifold("density"),
    "kernel distance, the same distribution": of_mmd(kernels.polynomial, 0.0),
    "CMMD, the same distribution": of_mmd(kernels.gaussian, 0.0),
    "recall": of_share("recall"),
    "coverage": of_share("coverage"),
    "coverage, far": of_share("coverage", mean=2.0),
    "coverage, hardly any": of_share("coverage", 48, 1.0, 168, 64),
    "recall, many dimensions": of_share("recall", 64, 0.2, 400, 200),
    "Vendi score": of_vendi,
    "class read right": of_accuracy,
    "AUC of labels": of_auc(150, [0.4], 1.0),
    "AUC of a rare label": of_auc(100, [0.15], 2.5),
    "AUC of five labels": of_auc(200, [0.1] * 5, 2.0),
    "calibration error": of_calibration(0.3),
    "calibration error, calibrated": of_calibration(0.0),
    "copies": of_copies,
    "retrieval, AUC": of_retrieval,
    "retrieval, R@1": of_first,
    "bits per dimension": of_bits,
    "correlation": of_correlation,
    "class imbalance": of_imbalance,
}


# Errors on the side of doubt: the truth is at the end of what can be, or the jackknife of balls that move is an upper
# bound (Efron and Stein 1981).
WIDE = {name for name in MEASURED if "the same" in name} | {"recall, many dimensions", "calibration error, calibrated"}


@pytest.mark.parametrize("name", MEASURED)
def test_intervals_hold_the_value_that_the_samples_have_on_average(name):
    """95 % of them, of 200 sets of samples: between 90 and 99 %. No true distance is below 0."""
    torch.manual_seed(0)
    values, ends = zip(*(MEASURED[name](seed) for seed in range(_SIMULATIONS)), strict=True)
    truth = max(0.0, np.mean(values))
    share = np.mean([low <= truth <= high for low, high in ends])
    assert 0.90 <= share <= (1.0 if name in WIDE else 0.99), share
    assert all(low < high for low, high in ends)
