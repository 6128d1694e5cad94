"""Each measure against a case whose answer is known."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from cond_pipelines.evaluation import measures as m
from cond_pipelines.evaluation import probes


def normal(n, dim=8, mean=0.0, std=1.0, seed=0):
    return (mean + std * np.random.default_rng(seed).standard_normal((n, dim))).astype(np.float32)


class AsTheyAre(torch.nn.Module):
    """Features for torchmetrics, which asks its extractor for their number."""

    def __init__(self, dim):
        super().__init__()
        self.num_features = dim

    def forward(self, x):
        return x


# --------------------------------------------------------------------------------------------- Frechet and kernel
def test_frechet_equals_torchmetrics_and_the_definition():
    a, b = normal(500, 16, seed=1) @ normal(16, 16, seed=2), normal(400, 16, 0.3, 1.2, seed=3)
    theirs = FrechetInceptionDistance(feature=AsTheyAre(16))
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    mine = m.frechet_distance(m.Gaussian.of(a), m.Gaussian.of(b))
    assert mine == pytest.approx(theirs.compute().item(), rel=1e-6)
    a, b = a.astype(np.float64), b.astype(np.float64)
    values = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
    by_definition = (
        np.square(a.mean(0) - b.mean(0)).sum()
        + np.cov(a.T).trace()
        + np.cov(b.T).trace()
        - 2 * np.sqrt(values).real.sum()
    )
    assert mine == pytest.approx(by_definition, rel=1e-6)


def test_frechet_of_known_gaussians():
    """Diagonal ones have a closed form: the difference of means and of standard deviations, squared."""
    n = 2000
    white = np.random.default_rng(0).standard_normal((n, 4))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T  # exactly mean 0, covariance 1
    std, mean = np.array([1.0, 2.0, 3.0, 0.5]), np.array([0.0, 1.0, -2.0, 0.0])
    a, b = m.Gaussian.of(white), m.Gaussian.of(white * std + mean)
    assert m.frechet_distance(a, b) == pytest.approx(np.square(mean).sum() + np.square(std - 1).sum(), rel=1e-6)
    assert m.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_statistics_add_up():
    x = normal(5000)
    whole, parts = m.Gaussian.of(x), m.Gaussian.of(x[:1234]) + m.Gaussian.of(x[1234:])
    assert whole.n == parts.n
    assert torch.allclose(whole.mean, parts.mean, rtol=1e-12)
    assert torch.allclose(whole.covariance, torch.from_numpy(np.cov(x.astype(np.float64).T)), rtol=1e-9)


def test_degenerate_features():
    """Fewer images than features, and features that never change: finite, and zero of a set with itself."""
    x = np.concatenate([normal(5, 20), np.ones((5, 3), np.float32)], axis=1)
    assert m.frechet_distance(m.Gaussian.of(x), m.Gaussian.of(x)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two images at least"):
        m.frechet_distance(m.Gaussian.of(x[:1]), m.Gaussian.of(x))


def test_calibration_error():
    """0 for chances that come true, the difference for one who is always too sure."""
    rng = np.random.default_rng(0)
    sure = rng.random(200_000)
    assert probes.calibration_error(sure, (rng.random(200_000) < sure).astype(float)) < 0.005
    assert probes.calibration_error(np.full(1000, 0.9), np.r_[np.ones(600), np.zeros(400)]) == pytest.approx(0.3)
    assert probes.calibration_error(np.ones(10), np.ones(10)) == 0
    confidence, correct = rng.random(500), rng.integers(0, 2, 500)
    theirs = BinaryCalibrationError(n_bins=10, norm="l1")(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert probes.calibration_error(confidence, correct.astype(float)) == pytest.approx(theirs.item(), abs=1e-6)


def test_kernel_distance_equals_torchmetrics():
    a, b = normal(300, seed=1), normal(300, mean=0.5, seed=2)
    theirs = KernelInceptionDistance(feature=AsTheyAre(8), subsets=1, subset_size=300)
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    assert m.kernel_distance(a, b, subsets=1, size=300)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    found = m.kernel_distance(normal(4000, seed=1), normal(4000, seed=2), subsets=200, size=200)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(200) + 1e-3
    assert m.kernel_distance(normal(1000), normal(1000, mean=1.0, seed=2)).mean() > 0.5


# -------------------------------------------------------------------------------------- precision, recall, copies
def test_nearest_is_the_brute_force():
    """Of more rows than a block holds."""
    a, b = (normal(n, 3, seed=n).astype(np.float64) for n in (2100, 2500))
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    distances, indices = m.nearest(a, b, k=4)
    assert np.array_equal(indices, np.argsort(pairs, axis=1)[:, :4])
    assert np.allclose(distances, np.sort(pairs, axis=1)[:, :4], atol=1e-5)
    among = np.linalg.norm(b[:, None] - b[None], axis=-1)
    assert np.allclose(m.radius(b, 4), np.sort(among, axis=1)[:, 4], atol=1e-5)  # itself is no neighbour


def modes(which, n=200, seed=0):
    rng = np.random.default_rng(seed)
    centres = 50.0 * np.eye(8)
    return (centres[rng.choice(which, n)] + rng.standard_normal((n, 8))).astype(np.float32)


def test_half_of_the_modes_removed():
    """Recall and coverage fall by half; precision and density do not."""
    real = modes(range(8), 800)
    full, half = m.manifolds(real, modes(range(8), 800, seed=1)), m.manifolds(real, modes(range(4), 800, seed=1))
    for name in ("recall", "coverage"):
        assert full[name].mean() > 0.9 and half[name].mean() == pytest.approx(0.5 * full[name].mean(), abs=0.06), name
    assert half["precision"].mean() > 0.85 and half["density"].mean() > 0.85


def test_noise_is_precise_in_nothing():
    found = m.manifolds(modes(range(8), 400), normal(400, std=300.0))
    assert found["precision"].mean() == found["coverage"].mean() == 0


def test_manifolds_are_the_definition():
    """Of more rows than a block holds."""
    real, fake, k = normal(2100, 2, seed=1).astype(np.float64), normal(2200, 2, mean=0.5, seed=2).astype(np.float64), 3

    def radius(x):
        return np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)[:, k]

    pairs = np.linalg.norm(real[:, None] - fake[None], axis=-1)  # (2100, 2200)
    found = m.manifolds(real, fake, k)
    assert np.array_equal(found["precision"], (pairs <= radius(real)[:, None]).any(axis=0))
    assert np.array_equal(found["recall"], (pairs <= radius(fake)[None]).any(axis=1))
    assert np.allclose(found["density"], (pairs <= radius(real)[:, None]).sum(axis=0) / k)
    assert np.array_equal(found["coverage"], (pairs <= radius(real)[:, None]).any(axis=1))
    again = m.manifolds(real, fake, k, real_radius=m.radius(real, k))
    assert all(np.array_equal(found[name], again[name]) for name in found)
    with pytest.raises(ValueError, match="more than 3 images"):
        m.manifolds(real, fake[:3], k)


def test_copies_are_flagged_and_new_images_are_not():
    train, held_out = normal(2000, seed=1), normal(500, seed=2)
    copied = train[[5, 17, 1999]] + 1e-4
    flags, indices, _ = m.copies(copied, train, held_out)
    assert flags.all() and indices.tolist() == [5, 17, 1999]
    flags, _, _ = m.copies(normal(2000, seed=3), train, held_out)
    assert flags.mean() < 0.03


# ------------------------------------------------------------------------------------------------- does it obey?
def test_probe_on_separable_classes_and_on_shuffled_labels():
    labels = np.random.default_rng(0).integers(0, 4, 800)
    features = normal(800, 8, seed=1)
    features[np.arange(800), labels] += 6
    probe = probes.Probe(features[:600], labels[:600])
    assert (probe(features[600:]) == labels[600:]).mean() > 0.98
    shuffled = np.random.default_rng(1).permutation(labels)
    assert (probe(features) == shuffled).mean() == pytest.approx(0.25, abs=0.07)


def test_confusion_and_imbalance():
    conditions, read = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    assert probes.confusion(conditions, read, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    third = np.full(3, 1 / 3)
    assert probes.imbalance(read, third) == 0
    assert probes.imbalance(np.zeros(9, dtype=int), third) == pytest.approx(2 / 3)
    assert probes.imbalance(np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]), np.array([0.4, 0.2, 0.4])) == pytest.approx(0.1)


def test_retrieval_of_matched_and_of_shuffled_captions():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((200, 12))
    which = rng.integers(0, 200, 2000)
    texts, images = table[which], table[which] @ rng.standard_normal((12, 30)) + 0.05 * rng.standard_normal((2000, 30))
    retrieval = probes.Retrieval(images[:1500], texts[:1500])
    found = retrieval(images[1500:], texts[1500:])
    assert found["r_at_1"].mean() > 0.95 and found["auc"].mean() > 0.99
    # Two captions alone would be an easy choice; among those of the pool they are as hard as the others.
    noisy = images[1500:] + 3 * rng.standard_normal((500, 30))
    two = np.flatnonzero(np.isin(which[1500:], which[1500:1502]))
    alone, pooled = (retrieval(noisy[two], texts[1500:][two], pool)["r_at_1"].mean() for pool in (None, table))
    assert alone > pooled
    shuffled = retrieval(images[1500:], texts[1500:][rng.permutation(500)])
    assert shuffled["auc"].mean() == pytest.approx(0.5, abs=0.05)
    assert shuffled["r_at_1"].mean() == pytest.approx(0.01, abs=0.02)
    assert shuffled["r_at_5"].mean() == pytest.approx(0.05, abs=0.04)


# ----------------------------------------------------------------------------------------------------- how sure?
def test_the_interval_of_a_mean_covers_it():
    """95 % of the intervals hold the true mean, give or take."""
    holds = []
    for seed in range(200):
        low, high = m.interval_of_mean(normal(60, 1, seed=seed)[:, 0], resamples=200)
        holds.append(low <= 0 <= high)
    assert 0.88 <= np.mean(holds) <= 1.0


def test_the_interval_of_a_statistic_is_that_of_a_mean():
    values = 5 + normal(200, 1)[:, 0]
    assert m.interval_of(np.mean, values) == pytest.approx(m.interval_of_mean(values), abs=0.05)
    assert m.interval_of(np.std, np.ones(20)) == (0, 0)


def test_the_interval_of_a_frechet_distance():
    real = m.Gaussian.of(normal(5000))
    few = m.interval_of_frechet(normal(200, mean=0.5, seed=1), real)
    many = m.interval_of_frechet(normal(5000, mean=0.5, seed=1), real)
    assert few[1] - few[0] > 2 * (many[1] - many[0]) > 0
    other = m.frechet_distance(m.Gaussian.of(normal(5000, mean=0.5, seed=2)), real)
    assert abs(other - sum(many) / 2) < 2 * (many[1] - many[0])


@pytest.mark.parametrize(("dim", "mean"), [(8, 0.5), (8, 0.0), (64, 0.2)])
def test_the_interval_of_a_frechet_distance_is_as_wide_as_the_distances_differ(dim, mean):
    """Of independent sets of samples; also with few samples for the dimensions. It errs on the side of doubt."""
    real = m.Gaussian.of(normal(5000, dim))
    sets = [normal(300, dim, mean=mean, seed=seed) for seed in range(1, 41)]
    spread = np.std([m.frechet_distance(m.Gaussian.of(x), real) for x in sets])
    widths = [np.diff(m.interval_of_frechet(x, real))[0] / 3.92 for x in sets[:10]]
    assert 0.75 * spread < np.mean(widths) < 1.8 * spread
