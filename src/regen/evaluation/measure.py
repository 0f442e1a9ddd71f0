"""One clip and its reconstruction -> numbers; many of those -> the means of a row."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from regen.evaluation.frechet import frechet_distance
from regen.evaluation.metrics import psnr, ssim, ssim_gaussian
from regen.evaluation.networks import FeatureNetwork, Network
from regen.evaluation.temporal import colour_error, colour_shift, flicker, seam_ratio
from regen.video import frames_to_video

FRAMES_AT_ONCE = 16  # bounds the memory of the metrics; no number depends on it
SCALARS = ("psnr", "psnr_pooled", "ssim", "ssim_gaussian", "lpips_alex", "lpips_vgg",
           "flicker", "colour_error", "seam_ratio", "seam_ratio_source")  # fmt: skip


def measure(
    frames: np.ndarray,
    reconstruction: np.ndarray,
    chunk_length: int | None,
    lpips: dict[str, Network] | None = None,
) -> dict[str, Any]:
    """The metrics of one clip, both uint8 `[T, H, W, 3]`.

    `frames`: lists over the frames; the other values are of the whole clip, NaN where they are not
    defined.
    """
    metrics: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "psnr": psnr,
        "ssim": ssim,
        "ssim_gaussian": ssim_gaussian,
        "colour_error": colour_error,
    }
    metrics |= {name: network.run for name, network in (lpips or {}).items()}
    by_frame: dict[str, list[float]] = {name: [] for name in metrics}
    shifts: list[torch.Tensor] = []
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        part = slice(start, start + FRAMES_AT_ONCE)
        source, other = (frames_to_video(one[part])[None] for one in (frames, reconstruction))
        for name, metric in metrics.items():
            by_frame[name] += metric(other, source)[0].tolist()
        shifts.append(colour_shift(other, source)[0])
    values: dict[str, Any] = {name: _mean(those) for name, those in by_frame.items()}
    values["frames"] = by_frame
    error = np.square(frames.astype(np.float32) - reconstruction).mean(dtype=np.float64)
    values["psnr_pooled"] = min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0
    values["colour_shift"] = torch.cat(shifts).mean(dim=0).tolist()
    values |= _temporal(frames, reconstruction, chunk_length)
    return values


def _temporal(
    frames: np.ndarray, reconstruction: np.ndarray, chunk_length: int | None
) -> dict[str, float]:
    source, other = (frames_to_video(one)[None] for one in (frames, reconstruction))
    values = {"flicker": math.nan, "seam_ratio": math.nan, "seam_ratio_source": math.nan}
    if len(frames) > 1:
        values["flicker"] = flicker(other, source).mean().item()
    if chunk_length is not None and len(frames) > chunk_length:
        values["seam_ratio_source"] = seam_ratio(source, chunk_length).item()
        if not math.isnan(values["seam_ratio_source"]):  # means of both are of the same clips
            values["seam_ratio"] = seam_ratio(other, chunk_length).item()
    return values


def feature_clips(frames: np.ndarray, num_frames: int) -> np.ndarray:
    """All whole pieces of `num_frames` from the first frame on: `[N, num_frames, H, W, 3]`.

    Choice: rFVD takes every whole piece of every clip, not one random piece of each. The two sets
    are the same moments, nothing is drawn, and a small benchmark gives more samples.
    """
    count = len(frames) // num_frames
    return frames[: count * num_frames].reshape(count, num_frames, *frames.shape[1:])


def features_of(network: FeatureNetwork, frames: np.ndarray, num_frames: int) -> list[list[float]]:
    """Features of the pieces of a clip, a list each; empty where the clip is too short."""
    clips = feature_clips(frames, num_frames)
    if not len(clips):
        return []
    return [[float(value) for value in row] for row in network.features(clips)]


# -- many clips -----------------------------------------------------------------------------------


def summarize(
    records: list[dict[str, Any]],
    seeds: list[int],
    chunk_length: int | None,
    source_features: dict[str, list[list[float]]] | None,
) -> dict[str, Any]:
    """The means of a row over `records` of clips: mean over clips, then over seeds.

    `spread` is the standard deviation over seeds (of the sample), where there are several.
    """
    summary: dict[str, Any] = {"num_clips": len(records), "mean": {}, "spread": {}, "by_seed": {}}
    for name in (*SCALARS, "rfvd"):
        values = []
        for seed in seeds:
            if name == "rfvd":
                values.append(_rfvd(records, seed, source_features))
            else:
                values.append(_mean(_values(records, seed, name)))
        finite = [value for value in values if not math.isnan(value)]
        if len(finite) == len(seeds):
            summary["mean"][name] = _mean(values)
            summary["by_seed"][name] = dict(zip(map(str, seeds), values, strict=True))
            if len(seeds) > 1:
                summary["spread"][name] = float(np.std(values, ddof=1))
    if source_features is not None:
        summary["rfvd_samples"] = sum(len(source_features[one["id"]]) for one in records)
    summary["seam_clips"] = len(_values(records, seeds[0], "seam_ratio"))
    every = [[one["seeds"][str(seed)] for one in records] for seed in seeds]
    summary["psnr_by_position"] = np.mean(
        [_by_position([one["frames"]["psnr"] for one in those], chunk_length) for those in every],
        axis=0,
    ).tolist()
    summary["colour_shift"] = np.mean(
        [one["colour_shift"] for those in every for one in those], axis=0
    ).tolist()
    return summary


def _values(records: list[dict[str, Any]], seed: int, name: str) -> list[float]:
    """Of the clips where it is defined."""
    values = [record["seeds"][str(seed)].get(name) for record in records]
    return [value for value in values if value is not None and not math.isnan(value)]


def _rfvd(
    records: list[dict[str, Any]],
    seed: int,
    source_features: dict[str, list[list[float]]] | None,
) -> float:
    """Of the whole set at once; NaN without the network or with fewer than two pieces."""
    if source_features is None:
        return math.nan
    ours = [row for one in records for row in one["seeds"][str(seed)]["features"]]
    theirs = [row for one in records for row in source_features[one["id"]]]
    if len(ours) < 2:
        return math.nan
    return frechet_distance(np.array(ours), np.array(theirs))


def _by_position(values: list[list[float]], chunk_length: int | None) -> list[float]:
    """Mean over clips by the frame's position in its chunk, or in the clip where there are none.

    Of clips that have every place, where any has.
    """
    length = chunk_length or max(map(len, values))
    whole = [one for one in values if len(one) >= length]
    longest = length if whole else max(map(len, values))
    those = whole or [one for one in values if len(one) == longest]
    rows = [[_mean(one[position::length]) for position in range(longest)] for one in those]
    return [float(value) for value in np.mean(rows, axis=0)]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan
