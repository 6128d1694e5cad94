"""What is read in features (N, D), one row an image: labels, captions, vectors; and how right it is."""

from collections.abc import Callable

import numpy as np


class Probe:
    """A linear classifier on features: logistic regression by scikit-learn.

    Example:
        >>> probe = Probe(train_features, train_labels)
        >>> probe(fake_features) == labels
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, most: int = 20_000, seed: int = 0):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rows = np.random.default_rng(seed).permutation(len(features))[:most]
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        self.model.fit(features[rows], labels[rows])

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Labels (N,)."""
        return self.model.predict(features)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Of two labels, how much each row is of the greater one: (N,), 0 where both are as likely."""
        return self.model.decision_function(features)


def confusion(conditions: np.ndarray, read: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class was the condition (rows) and was read in the sample (columns): (K, K) int."""
    from sklearn.metrics import confusion_matrix

    counts: np.ndarray = confusion_matrix(conditions, read, labels=range(num_classes))
    return counts


def imbalance(read: np.ndarray, frequency: np.ndarray) -> float:
    """Total variation distance between the classes read in samples (N,) and their `frequency` (K,) in the data.

    0: as often as in the data; 0.1: one sample in ten would have to be of another class.
    """
    shares = np.bincount(read, minlength=len(frequency)) / len(read)
    return float(np.abs(shares - frequency).sum() / 2)


def mean_auc(has: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, the mean over K labels; nan of none that some images have and some have not.

    Args:
        has: (N, K) bool, whether an image has a label. scores: (N, K), higher where it seems to have it.
    """
    from scipy.stats import rankdata

    num_with = has.sum(axis=0)  # (K,)
    varied = (num_with > 0) & (num_with < len(has))
    if not varied.any():
        return float("nan")
    has, num_with = has[:, varied], num_with[varied]
    # The share of pairs of an image with and one without that are in the right order (Mann and Whitney 1947).
    ranks = (rankdata(scores[:, varied], axis=0) * has).sum(axis=0)
    wins = ranks - num_with * (num_with + 1) / 2
    return float(np.mean(wins / (num_with * (len(has) - num_with))))


def auc_by(has: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """By how much `mean_auc` falls without each image: (N,), from DeLong et al. (1988, Eq. 4 and 5)."""
    from scipy.stats import rankdata

    falls, num_with = np.zeros(len(has)), has.sum(axis=0)
    varied = np.flatnonzero((num_with > 1) & (num_with < len(has) - 1))
    for label in varied:
        score, ranks = scores[:, label], rankdata(scores[:, label])
        for sign, mine in ((1, has[:, label]), (-1, ~has[:, label])):
            # Its rank among all, less that among its own sort: of how many of the other sort it is above.
            above = (ranks[mine] - rankdata(score[mine])) / (~mine).sum()
            falls[mine] += sign * (above - above.mean()) / (mine.sum() - 1) / len(varied)
    return falls


def ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A linear map from (N, D) to (N, E) by ridge regression, whose strength cross-validation chooses."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=(1e-1, 1e1, 1e3))).fit(x, y)
    return lambda features: model.predict(features).reshape(len(features), -1)


def mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of each column of (N, E) arrays, the mean over the columns of `a` that vary: from -1 to 1."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    spread = np.sqrt((a * a).sum(axis=0)) * np.sqrt((b * b).sum(axis=0))  # (E,)
    varied = (a * a).sum(axis=0) > 1e-12 * len(a)
    return float(np.mean((a * b).sum(axis=0)[varied] / np.maximum(spread[varied], 1e-12))) if varied.any() else 0.0


class Retrieval:
    """How well images go with their captions, through a ridge map from image features to text embeddings.

    Args:
        images, texts: (N, D) and (N, E) features of real pairs.

    Example:
        >>> retrieval = Retrieval(train_images, train_texts)
        >>> retrieval(fake_images, their_texts)["r_at_1"]
    """

    def __init__(self, images: np.ndarray, texts: np.ndarray):
        self.centre = texts.mean(axis=0)
        self.predict = ridge(images, texts - self.centre)

    def __call__(
        self, images: np.ndarray, texts: np.ndarray, pool: np.ndarray | None = None, choices: int = 100, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """One value an image: r_at_1, r_at_5 among `choices` different captions; auc, matched against shuffled.

        Args:
            pool: (P, E) captions from which the other choices are drawn; default: `texts`.
        """
        mapped = _unit(self.predict(images))  # (N, E)
        own_texts = _unit(texts - self.centre)  # (N, E)
        others = own_texts if pool is None else _unit(pool - self.centre)  # (P, E)
        known, which = np.unique(np.concatenate([own_texts, others]).round(5), axis=0, return_inverse=True)  # (K, E)
        which, rng = which.reshape(-1)[: len(own_texts)], np.random.default_rng(seed)
        own = (mapped * own_texts).sum(axis=1)  # (N,)
        ranks, wins = np.zeros(len(images)), np.zeros(len(images))
        for i in range(len(images)):
            wrong = np.flatnonzero(np.arange(len(known)) != which[i])
            wrong = rng.permutation(wrong)[: choices - 1]
            similar = known[wrong] @ mapped[i]  # (choices - 1,)
            ranks[i] = (similar > own[i] + 1e-6).sum()
            wins[i] = (similar < own[i] - 1e-6).mean() if len(wrong) else 0.5
        return {"r_at_1": (ranks < 1).astype(float), "r_at_5": (ranks < 5).astype(float), "auc": wins}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, Eq. 3).

    0 where answers of confidence 0.8 are right in 80 % of the cases.

    torchmetrics' BinaryCalibrationError gives the same number (a test compares); three lines are no reason to need it.

    Args:
        confidence: (N,) probabilities of the chosen class. correct: (N,) 1 where it was right, otherwise 0.
    """
    part = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = [abs(correct[part == b].sum() - confidence[part == b].sum()) for b in range(num_bins)]
    return float(sum(gaps) / len(confidence))
