"""Where a model with moving content starts: the principal components of 8 x 8 patches."""

import math
from collections.abc import Iterable

import torch
from einops import rearrange

from regen.data.batches import to_float
from regen.model.patches import LinearCodec, to_patches

FLOOR = 1e-6  # of a variance, where the data has fewer directions than channels


@torch.no_grad()
def solve_linear(codec: LinearCodec, batches: Iterable[torch.Tensor]) -> float:
    """Set `codec` to the whitened principal components of `batches` (uint8 `[B, 3, H, W]` each).

    Returns the PSNR, in dB, of the mean squared error that they leave.
    """
    moments: torch.Tensor | float = 0.0
    for batch in batches:
        rows = rearrange(to_patches(to_float(batch)[:, :, None]), "b d h w -> (b h w) d")
        rows = torch.nn.functional.pad(rows, (0, 1), value=1.0)
        moments = moments + (rows.T @ rows).double()
    assert isinstance(moments, torch.Tensor)
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    variance, directions = torch.linalg.eigh(moments[:-1, :-1] - torch.outer(mean, mean))
    count = codec.analysis.out_channels
    directions = directions[:, -count:].flip(1)  # [192, count], the largest first
    std = variance[-count:].flip(0).clamp_min(FLOOR).sqrt()
    weight = (directions / std).T
    for conv, value, bias in (
        (codec.analysis, weight, -weight @ mean),
        (codec.synthesis, directions * std, mean),
    ):
        assert conv.bias is not None
        conv.weight.copy_(value.view_as(conv.weight))
        conv.bias.copy_(bias)
    left = float(variance[:-count].clamp_min(0).mean()) * (1 - count / len(variance))
    return -10 * math.log10(left / 4)
