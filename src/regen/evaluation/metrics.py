"""PSNR and SSIM per frame, on [0, 1] RGB, in float32. In: videos `[B, 3, T, H, W]` in [-1, 1]. Out: `[B, T]`."""

import torch
from einops import rearrange
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each frame in dB, `[B, T]`; equal frames give 100."""
    error = (video.float() - reference.float()).div(2).square().mean(dim=(1, 3, 4))
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each frame, `[B, T]`: 11 x 11 Gaussian window, sigma 1.5, mean over RGB (Wang et al., 2004).

    Frames under 11 pixels on a side have no such window: NaN.
    """
    batch = video.shape[0]
    if min(video.shape[-2:]) < 11:
        return torch.full((batch, video.shape[2]), float("nan"))
    frames, references = (rearrange(x.float(), "b c t h w -> (b t) c h w") / 2 + 0.5 for x in (video, reference))
    values = structural_similarity_index_measure(frames, references, data_range=1.0, reduction="none")
    assert isinstance(values, torch.Tensor)
    return rearrange(values, "(b t) -> b t", b=batch)
