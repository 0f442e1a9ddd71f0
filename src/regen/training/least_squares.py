"""Linear parts solved from data: principal components, least squares, and both as convolutions.

All of it follows from second moments, summed over batches: memory does not grow with their number.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from regen.models.patches import repeat_edges

RIDGE = 1e-4  # on whitened codes, whose own variance is 1
FLOOR = 1e-6  # of a variance over a patch, where the data has fewer directions than channels

Rows = tuple[torch.Tensor, torch.Tensor]  # features `[n, d]`, targets `[n, e]`


def rows(planes: torch.Tensor) -> torch.Tensor:
    return rearrange(planes, "b d h w -> (b h w) d")


def neighbourhoods(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[B, n, h, w]` of each 3 x 3 neighbourhood and a 1: `[B h w, 9 n + 1]`."""
    features = rearrange(F.unfold(repeat_edges(codes), 3), "b d hw -> (b hw) d")
    return F.pad(features, (0, 1), value=1.0)


def components(rows: Iterable[torch.Tensor], num_components: int) -> Rows:
    """(`[n, d]` directions over their deviations, offsets `[n]`): whitened principal components."""
    moments: torch.Tensor | float = 0.0
    for values in rows:
        values = F.pad(values, (0, 1), value=1.0)
        moments = moments + (values.T @ values).double() / len(values)
    assert isinstance(moments, torch.Tensor)
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    variance, directions = torch.linalg.eigh(moments[:-1, :-1] - torch.outer(mean, mean))
    deviation = variance[-num_components:].flip(0).clamp_min(FLOOR).sqrt()
    weight = directions[:, -num_components:].T.flip(0) / deviation[:, None]
    return weight, -weight @ mean


def least_squares(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Map `[d, e]` from features to targets."""
    gram: torch.Tensor | float = 0.0
    cross: torch.Tensor | float = 0.0
    for features, targets in batches:
        gram = gram + (features.T @ features).double() / len(features)
        cross = cross + (features.T @ targets).double() / len(features)
    assert isinstance(gram, torch.Tensor) and isinstance(cross, torch.Tensor)
    ridge = RIDGE * gram[-1, -1] * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, cross).float()


def set_conv(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    assert conv.bias is not None
    conv.weight.copy_(weight.view_as(conv.weight))
    conv.bias.copy_(bias)


def set_synthesis(conv: nn.Conv2d, solution: torch.Tensor) -> None:
    """`solution` `[9 n + 1, e]` as a 3 x 3 convolution."""
    set_conv(
        conv, rearrange(solution[:-1], "(c y x) d -> d c y x", y=3, x=3).contiguous(), solution[-1]
    )
