"""What stands in for LPIPS in the baseline's training where no weights of it are given.

Both take frames `[N, 3, H, W]` in [-1, 1] and give a distance for each, `[N]`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

NUM_LEVELS = 4


def pyramid_distance(frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """L1 between Laplacian pyramids (Bojanowski et al., 2018): of bands, each about as important.

    Choice: without VGG weights the perceptual term is a Laplacian pyramid. No weights can be
    downloaded in training; it too asks for detail at each scale, though not for what people see.
    """
    difference = frames.float() - reference.float()
    total = torch.zeros(len(frames), device=frames.device)
    for level in range(NUM_LEVELS):
        if level == NUM_LEVELS - 1 or min(difference.shape[-2:]) < 4:
            return total + difference.abs().mean(dim=(1, 2, 3))
        coarse = F.avg_pool2d(difference, 2, ceil_mode=True)
        wide = F.interpolate(coarse, difference.shape[-2:], mode="bilinear", align_corners=False)
        total = total + (difference - wide).abs().mean(dim=(1, 2, 3))
        difference = coarse
    return total
