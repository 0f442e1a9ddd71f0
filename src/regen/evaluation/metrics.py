"""PSNR and SSIM per frame, on [0, 1] RGB, in float32.

In: videos `[B, 3, T, H, W]` in [-1, 1]. Out: `[B, T]`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each frame in dB, `[B, T]`; equal frames give 100."""
    error = (video.float() - reference.float()).div(2).square().mean(dim=(1, 3, 4))
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each frame, `[B, T]`: 8 x 8 windows every 4 pixels, mean over RGB.

    Frames under 8 pixels on a side have no window: NaN.
    Choice: SSIM is what FFmpeg's ssim filter computes. Anyone can check it; `ssim_gaussian` is the
    literature's, about 0.01 lower on our clips.
    """
    batch, _, num_frames, height, width = video.shape
    if min(height, width) < 8:
        return torch.full((batch, num_frames), float("nan"))
    one, other = _planes(video), _planes(reference)
    mean_one, mean_other = F.avg_pool2d(one, 8, 4), F.avg_pool2d(other, 8, 4)
    sample = 64 / 63  # variance of the sample
    variances = sample * (
        F.avg_pool2d(one * one + other * other, 8, 4) - mean_one**2 - mean_other**2
    )
    covariance = sample * (F.avg_pool2d(one * other, 8, 4) - mean_one * mean_other)
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    values = values / ((mean_one**2 + mean_other**2 + c1) * (variances + c2))
    return rearrange(values, "(b t) c h w -> b t (c h w)", b=batch).mean(-1)


def ssim_gaussian(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each frame, `[B, T]`, with a Gaussian window (Wang et al., 2004).

    The window is 11 x 11, sigma 1.5; mean over RGB. Frames under 11 pixels on a side have no such
    window: NaN.
    """
    batch, _, num_frames, height, width = video.shape
    if min(height, width) < 11:
        return torch.full((batch, num_frames), float("nan"))
    values = structural_similarity_index_measure(
        _planes(video), _planes(reference), data_range=1.0, reduction="none"
    )
    assert isinstance(values, torch.Tensor)
    return rearrange(values, "(b t) -> b t", b=batch)


def _planes(video: torch.Tensor) -> torch.Tensor:
    """`[B, 3, T, H, W]` in [-1, 1] -> `[B T, 3, H, W]` in [0, 1]."""
    return rearrange(video.float(), "b c t h w -> (b t) c h w") / 2 + 0.5
