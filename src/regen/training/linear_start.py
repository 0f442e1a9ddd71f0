"""Where a model with moving content starts: its linear codec, solved from the first images.

Analysis: principal components of 8 x 8 patches. Synthesis: least squares from each 3 x 3
neighbourhood of their codes.
"""

from collections.abc import Iterable

import torch

from regen.data.batches import to_float
from regen.models.patches import LinearCodec, to_patches
from regen.training.least_squares import (
    components,
    least_squares,
    neighbourhoods,
    rows,
    set_conv,
    set_synthesis,
)


@torch.no_grad()
def solve_linear(codec: LinearCodec, batches: Iterable[torch.Tensor]) -> float:
    """Set the weights of `codec` from `batches` (uint8 `[B, 3, H, W]` each).

    Returns the mean over samples of its PSNR on them, in dB.
    """
    frames = [to_float(batch) for batch in batches]
    patches = [to_patches(batch[:, :, None]) for batch in frames]
    set_conv(codec.analysis, *components(map(rows, patches), codec.analysis.out_channels))
    set_synthesis(
        codec.synthesis,
        least_squares(
            (neighbourhoods(codec.encode(batch)), rows(values))
            for batch, values in zip(frames, patches, strict=True)
        ),
    )
    errors = [(codec.decode(codec.encode(one)) - one).square().mean((1, 2, 3)) for one in frames]
    return float(-10 * torch.log10(torch.cat(errors) / 4).mean())
