"""PSNR and SSIM against closed forms and against FFmpeg's filters."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.filter import Graph

from regen.evaluation.metrics import psnr, ssim, ssim_gaussian
from regen.video import frames_to_video


def test_psnr_of_a_constant_offset() -> None:
    video = torch.zeros(2, 3, 4, 16, 16)
    assert torch.allclose(
        psnr(video + 0.2, video), torch.full((2, 4), 20.0), atol=1e-4
    )  # 0.1 on [0, 1]
    assert psnr(video, video).min() == 100


def test_metrics_do_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(3, 3, 2, 24, 24, generator=generator) * 2 - 1 for _ in range(2))
    for metric in (psnr, ssim, ssim_gaussian):
        parts = torch.cat([metric(one[i : i + 1], other[i : i + 1]) for i in range(3)])
        assert torch.allclose(metric(one, other), parts, atol=1e-5)


def test_ssim_is_one_for_equal_and_unknown_for_tiny_pictures() -> None:
    video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    for metric, window in ((ssim, 8), (ssim_gaussian, 11)):
        assert torch.allclose(metric(video, video), torch.ones(1, 2))
        assert metric(video[..., : window - 1], video[..., : window - 1]).isnan().all()


def ffmpeg_metric(name: str, frames: np.ndarray, reference: np.ndarray) -> list[float]:
    """`name` ("psnr" or "ssim") of FFmpeg's filter on RGB planes, frame by frame."""
    graph = Graph()
    height, width = frames.shape[1:3]
    sources = [
        graph.add_buffer(width=width, height=height, format="gbrp", time_base=Fraction(1, 25))
        for _ in range(2)
    ]
    metric, sink = graph.add(name), graph.add("buffersink")
    sources[0].link_to(metric, 0, 0)
    sources[1].link_to(metric, 0, 1)
    metric.link_to(sink)
    graph.configure()
    values = []
    for index, pair in enumerate(zip(frames, reference, strict=True)):
        for source, picture in zip(sources, pair, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="gbrp")
            frame.pts = index
            source.push(frame)
        metadata = sink.pull().metadata
        key = "lavfi.psnr.psnr_avg" if name == "psnr" else "lavfi.ssim.All"
        values.append(float(metadata[key]))
    return values


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Smooth moving colours with texture, and a blurred, noisy copy: uint8 `[4, 96, 128, 3]`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    frames, copies = [], []
    for t in range(4):
        waves = [np.sin(x / (5 + c) + t / 3 + c) * np.cos(y / (7 - c) + c) for c in range(3)]
        frame = 127.5 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (96, 128, 3))
        copy = (frame + np.roll(frame, 1, 0) + np.roll(frame, 1, 1)) / 3 + rng.normal(
            0, 3, frame.shape
        )
        frames.append(frame.clip(0, 255).astype(np.uint8))
        copies.append(copy.clip(0, 255).astype(np.uint8))
    return np.stack(frames), np.stack(copies)


@pytest.mark.parametrize(("name", "tolerance"), [("psnr", 0.001), ("ssim", 0.01)])
def test_metrics_agree_with_ffmpeg(name: str, tolerance: float) -> None:
    frames, copies = pictures()
    theirs = ffmpeg_metric(name, copies, frames)
    metric = psnr if name == "psnr" else ssim
    ours = metric(frames_to_video(copies)[None], frames_to_video(frames)[None])[0].tolist()
    assert len(theirs) == 4 and all(math.isfinite(value) for value in theirs)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=tolerance)


def test_gaussian_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    frames, copies = pictures()
    theirs = []
    for one, other in zip(copies, frames, strict=True):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, values = metrics.structural_similarity(
            one, other, channel_axis=-1, data_range=255, full=True, **options
        )
        theirs.append(values[5:-5, 5:-5].mean())  # whole windows only
    ours = ssim_gaussian(frames_to_video(copies)[None], frames_to_video(frames)[None])[0].tolist()
    assert ours == pytest.approx(
        theirs, abs=0.01
    )  # torchmetrics mirrors the border, scikit-image leaves it out
