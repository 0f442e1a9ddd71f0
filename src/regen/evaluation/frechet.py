"""Frechet distance of two sets of features, of the whole sets at once, in float64.

Averaging distances of batches is another, larger number; there is no way to do so here.
"""

import numpy as np


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the moments of `[N, D]` and `[M, D]`.

    Choice: covariances divide by N, as cd-fvd's do. Dividing by N - 1 gives a distance about 1 / N
    larger.

    With C = X'X, for X the centred features over sqrt(N), the trace of the root is the sum of the
    singular values of X Y'. So no root is taken of eigenvalues that are rounding errors, of which
    covariances of fewer samples than features are full.
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
    mean, root = _mean_and_root(features)
    other_mean, other_root = _mean_and_root(reference)
    trace_of_root = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    traces = np.square(root).sum() + np.square(other_root).sum()
    return float(np.square(mean - other_mean).sum() + traces - 2 * trace_of_root)


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]`, and R `[min(N, D), D]` with R'R the covariance."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    root = np.linalg.qr((features - mean) / np.sqrt(len(features)), mode="reduced").R
    return mean, root
