"""Motion of a chunk: its basis in time, its latents, and the content that moves by it.

Motion is a backward field: where, in the first frame, each pixel of a later frame comes from. It is
given on a grid of 16 x 16 pixels by the amplitudes, in pixels, of eight terms in time, each along x
and y: linear motion from the first frame to the last, a quadratic term, and harmonics. These are
four numbers for each latent position, the motion channels of z_m.

Choice: motion has eight terms in time on a grid of two latent positions. A hand-held camera shakes;
over 33 frames that is worth 1.8 dB of the warp in clips that move, against two terms on each
latent position.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange

from regen.model.patches import in_float32

MOTION_CHANNELS = 4  # of z_m
NUM_TERMS = 8  # in time
GRID = 16  # pixels
MOTION_UNIT = 2.0  # pixels
NEXT_CELL = 8  # pixels, of the grid on which the decoder finds the motion to the next chunk
NEXT_ITERATIONS = 2
MAX_MOTION = 5.0  # of the latent: 148 pixels; what lies beyond comes from no encoder


def motion_basis(frame_times: torch.Tensor, ratio: int, num_terms: int = 2) -> torch.Tensor:
    """(s, 4 s (1 - s), sin 2 pi s, sin 3 pi s, ...) for s = `frame_times` / k: `[..., num_terms]`.

    Outside the chunk the parabola continues as its tangent: extrapolated motion keeps its speed.
    """
    s = frame_times.float() / ratio
    quadratic = torch.where((s < 0) | (s > 1), 4 * torch.minimum(s, 1 - s), 4 * s * (1 - s))
    sines = [torch.sin(math.pi * order * s) for order in range(2, num_terms)]
    return torch.stack([s, quadratic, *sines], dim=-1)


def displacement(
    motion: torch.Tensor, frame_times: torch.Tensor, ratio: int, cell: int = GRID
) -> torch.Tensor:
    """`motion` `[B, 2 J, m, n]` at `frame_times` `[B, F]` -> the field `[B, 2, F, cell m, cell n]`.

    All in pixels, x before y; `ratio` is the number of frames that the basis spans, `cell` the side
    of a cell of the grid.
    """
    with in_float32(motion):
        terms = interpolate(motion.float(), cell)
        basis = motion_basis(frame_times, ratio, motion.shape[1] // 2)
        field = basis[:, None] @ rearrange(terms, "b (j d) h w -> b d j (h w)", d=2)
        return field.unflatten(3, terms.shape[-2:])


def interpolate(maps: torch.Tensor, cell: int) -> torch.Tensor:
    """`[B, C, m, n]` on a grid of cells of `cell` pixels -> `[B, C, cell m, cell n]`, bilinear."""
    return F.interpolate(maps, scale_factor=cell, mode="bilinear")


def to_latents(motion: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`motion` `[B, 16, ceil(h/2), ceil(w/2)]` in pixels -> `[B, 4, h, w]` for `size` (h, w).

    Linear and quadratic motion are the mean of each 2 x 2 positions, the other terms their
    differences along x, along y, and along both. Where an odd last row or column leaves half of
    them, there are no differences across it: those terms are lost.

    Choice: a motion latent is asinh of pixels / 2. Motions are mostly small and sometimes huge; so
    they have about unit standard deviation, and rounding costs small ones little.
    """
    latents = torch.asinh(motion.float() / MOTION_UNIT).clamp(-MAX_MOTION, MAX_MOTION)
    height, width = size
    mean, across, down, both = latents.unflatten(1, (4, 4)).unbind(1)
    if width % 2:
        across, both = _without_last_column(across), _without_last_column(both)
    if height % 2:
        down, both = (_without_last_column(one.mT).mT for one in (down, both))
    top = torch.stack([mean + across + down + both, mean - across + down - both], dim=-1)
    bottom = torch.stack([mean + across - down - both, mean - across - down + both], dim=-1)
    positions = rearrange([top, bottom], "q b c h w p -> b c (h q) (w p)")
    return positions[..., :height, :width]


def from_latents(latents: torch.Tensor) -> torch.Tensor:
    """Motion latents `[B, 4, h, w]` -> `[B, 16, ceil(h/2), ceil(w/2)]` in pixels."""
    latents = latents.float()
    latents = F.pad(latents, (0, latents.shape[-1] % 2, 0, latents.shape[-2] % 2), mode="replicate")
    parts = rearrange(latents, "b c (h q) (w p) -> (q p) b c h w", q=2, p=2)
    left_up, right_up, left_down, right_down = parts
    mean = left_up + right_up + left_down + right_down
    across = left_up - right_up + left_down - right_down
    down = left_up + right_up - left_down - right_down
    both = left_up - right_up - left_down + right_down
    motion = torch.cat([mean, across, down, both], dim=1) / 4
    return torch.sinh(motion.clamp(-MAX_MOTION, MAX_MOTION)) * MOTION_UNIT


def _without_last_column(terms: torch.Tensor) -> torch.Tensor:
    return F.pad(terms[..., :-1], (0, 1))


def still_positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Pixel coordinates (x, y): `[2, height, width]`, float32."""
    columns = torch.arange(width, device=device, dtype=torch.float32).expand(height, -1)
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None].expand(-1, width)
    return torch.stack([columns, rows])


@torch.compiler.disable  # what a compiler makes of grid_sample takes longer, on a CPU
def warp(picture: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """`picture` `[B, C, H, W]` through `field` `[B, 2, F, H', W']` in pixels, edges repeated.

    `[B, C, F, H', W']`, float32: the value at x + field(x).
    """
    num_frames, height, width = field.shape[2:]
    size = torch.tensor([picture.shape[-1], picture.shape[-2]], device=field.device)
    size = size.view(2, 1, 1, 1)
    still = (2 * still_positions(height, width, field.device)[:, None] + 1) / size - 1
    # One tall grid for all frames: the picture is not copied for each. x and y stay planes in
    # memory, which `grid_sample` is fastest with.
    grid = rearrange(torch.addcmul(still, field, 2 / size), "b d f h w -> b (f h) w d")
    sampled = F.grid_sample(picture.float(), grid, padding_mode="border", align_corners=False)
    return rearrange(sampled, "b c (f h) w -> b c f h w", f=num_frames)


def field_to_next(field: torch.Tensor, to_first: torch.Tensor) -> torch.Tensor:
    """Where, in the next chunk's first frame, each pixel of the frames of `field` is.

    `field` `[B, 2, F, H, W]` leads from each frame to the chunk's first one, `to_first`
    `[B, 2, H, W]` from the next chunk's first frame to the same. Returns `[B, 2, F, H, W]`: the y
    with y + to_first(y) = x + field(x), as y - x, by fixed-point iteration.
    """
    found = field - to_first[:, :, None]
    for _ in range(NEXT_ITERATIONS):
        found = field - warp(to_first, found)
    return found
