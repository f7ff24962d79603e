"""Tests of paired answers: McNemar's, its worst case from counts, Holm's correction, a bootstrap over seeds and images, and Student's t."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05  # of every test, after Holm's correction
RESAMPLES = 10_000  # of the bootstrap
TEST_IMAGES = 10_000  # of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test, two-sided, that two networks are right equally often.

    Parameters: which of the same N images each gets right (booleans). Only images on which one of the two is right
    say anything: under the hypothesis each of them falls to either side by a fair coin. McNemar 1947, *Psychometrika* 12.

    >>> mcnemar(np.array([True] * 6 + [False]), np.array([False] * 6 + [False])) == 2 / 2**6
    True
    """
    ours, theirs = np.asarray(ours, bool), np.asarray(theirs, bool)
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.size} and {theirs.size} answers are not about the same test images")
    return mcnemar_of_counts(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))


def mcnemar_of_counts(right_alone: int, wrong_alone: int) -> float:
    """Return the p-value of `mcnemar` from its counts: images that only the first network gets right, and only the second.

    >>> round(mcnemar_of_counts(9, 1), 4), mcnemar_of_counts(0, 0)
    (0.0215, 1.0)
    """
    apart = int(right_alone) + int(wrong_alone)
    return float(stats.binomtest(int(right_alone), apart).pvalue) if apart else 1.0


def mcnemar_at_worst(right_ours: int, right_theirs: int, images: int) -> float:
    """Return the largest p-value that `mcnemar` could have, given how many of the same images each network gets right.

    Which images they are is not known. The difference of the two counts is, and the more images there are on which one alone is right,
    the less it says. So the p-value is that of as many as can be.

    >>> mcnemar_at_worst(5600, 5000, 10_000) < 1e-8, mcnemar_at_worst(5010, 5000, 10_000) > 0.9
    (True, True)
    """
    least = min(right_theirs, images - right_ours)  # images that they alone can have right, at most
    return mcnemar_of_counts(right_ours - right_theirs + least, least)


def paired_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the standard error of the difference of two accuracies (shares) on the same N images, from which each gets right.

    >>> round(paired_error(np.array([True, True, False, False]), np.array([True, False, True, False])), 4)
    0.3536
    """
    ours, theirs = np.asarray(ours, bool), np.asarray(theirs, bool)
    difference = ours.astype(float) - theirs
    return float(difference.std() / math.sqrt(len(difference)))


def holm(p: ArrayLike) -> np.ndarray:
    """Return p-values corrected for many comparisons; NaN stays NaN and does not count. Holm 1979, *Scand. J. Statist.* 6.

    The smallest of m is multiplied by m, the next by m - 1, and so on, and none is smaller than the one before it.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    order = [i for i in np.argsort(values, kind="stable") if not np.isnan(values[i])]
    found = np.full(values.shape, np.nan)
    steps = values[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1) if order else []
    return found


def paired_bootstrap(
    differences: np.ndarray, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return (mean, low, high, p) of paired differences over seeds and images, both drawn anew with replacement.

    Parameters
    ----------
    differences : seeds x images, 1 where only ours is right, -1 where only theirs is, 0 elsewhere; all seeds see the same images.
    resamples, seed : of the bootstrap; `level` of the interval, by percentiles.

    p is two-sided: twice the smaller share of resamples on one side of zero, at least 2 / (resamples + 1). Of three seeds little is drawn:
    where one of them disagrees with the others clearly, p is at least 2/27, and where all agree it says that these three networks are
    apart on more images than chance gives, not that every further seed would be.
    Images with the same differences are exchangeable, so that only their counts are drawn.

    >>> paired_bootstrap(np.zeros((2, 5)))
    (0.0, 0.0, 0.0, 1.0)
    """
    values = np.atleast_2d(np.asarray(differences, float))
    rng = np.random.default_rng(seed)
    kinds, counts = np.unique(values, axis=1, return_counts=True)
    images = values.shape[1]
    drawn = rng.multinomial(images, counts / images, size=resamples) / images  # shares of each kind of image
    by_seed = drawn @ kinds.T
    picked = rng.integers(len(values), size=(resamples, len(values)))
    means = np.take_along_axis(by_seed, picked, axis=1).mean(axis=1)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return float(values.mean()), float(low), float(high), float(min(1.0, 2 * (tail + 1) / (resamples + 1)))


def students_t(gains: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return (low, high, p) of the mean of paired differences by Student's t; NaN where they say nothing of their spread.

    Parameters: `gains`, one difference a seed; `level` of the interval.
    """
    if len(gains) < 2 or np.ptp(gains) == 0:
        return (0.0, 0.0, 1.0) if len(gains) > 1 and not gains.any() else (math.nan, math.nan, math.nan)
    mean, error, student = gains.mean(), stats.sem(gains), stats.t(len(gains) - 1)
    half = student.ppf(1 - level / 2) * error
    return float(mean - half), float(mean + half), float(2 * student.sf(abs(mean) / error))
