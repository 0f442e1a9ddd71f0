"""Frechet distance of two sets of features, of the whole sets at once, in float64.

Averaging distances of batches is another, larger number; there is no way to do so here.
"""

import numpy as np


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and covariance `[D, D]` of features `[N, D]`; the covariance divides by N.

    Choice: covariances divide by N, as cd-fvd's do. Dividing by N - 1 gives a distance about 1 / N
    larger.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / len(features)


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of `[N, D]` and `[M, D]`.

    Raises ValueError for fewer than two samples or features of another kind.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features are [N, D] and [M, D], got {features.shape} and {reference.shape}"
        )
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a covariance takes at least 2 samples, got {len(features)} and {len(reference)}"
        )
    return gaussian_distance(*moments(features), *moments(reference))


def gaussian_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) (Dowson and Landau, 1982).

    The trace of the root is the sum of the roots of the eigenvalues of C^(1/2) C' C^(1/2), which is
    symmetric also where covariances of few samples have no full rank.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other_covariance @ root)
    trace_of_root = np.sqrt(inner.clip(0)).sum()
    difference = mean - other_mean
    total = np.trace(covariance) + np.trace(other_covariance) - 2 * trace_of_root
    return float(difference @ difference + total)
