"""Motion of a chunk: its time basis, the warp by it, and its estimation without learned weights.

A motion latent is four numbers a place (8 x 8 pixels), in places: the way from the first frame to
the last along x and y (linear in time), then the bow of that way along x and y (a parabola). They
say where, in the first frame, each pixel of a later frame comes from (a backward motion field).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

MOTION_CHANNELS = 4
PLACE = 8  # pixels

# Choice: motion is searched up to 12 pixels a frame at k = 8, along x and along y. Search costs as
# the square of its range.
COARSE_SCALE, COARSE_RANGE, COARSE_STEP = 8, 96, 8  # pixels, from the first frame to the last
FINE_SCALE, FINE_RANGE, FINE_STEP = 4, 8, 4  # about the best of the coarse, and about no motion
SEARCH_GROUP = 64  # displacements compared at once
SEARCH_PENALTY = 8e-6  # squared error in [-1, 1] units that a pixel of displacement must gain
NUM_SEARCHED = 4  # later frames that search and coarse steps look at; the fine ones look at all
# Scale, iterations, window in places, whether at all frames.
REFINEMENTS = ((4, 4, 3, False), (2, 4, 3, False), (2, 4, 1, True), (1, 8, 1, True))
MOMENTUM = 0.7
DAMPING = 5e-5  # of the squared gradient of the picture, in [-1, 1] units per pixel


def motion_basis(frame_times: torch.Tensor, ratio: int) -> torch.Tensor:
    """(s, 4 s (1 - s)) for s = `frame_times` / k, `[...]` -> `[..., 2]`.

    Outside the chunk the parabola goes on as its tangent: extrapolated motion keeps its speed.
    """
    s = frame_times.float() / ratio
    bow = torch.where((s < 0) | (s > 1), 4 * torch.minimum(s, 1 - s), 4 * s * (1 - s))
    return torch.stack([s, bow], dim=-1)


def displacement(
    motion: torch.Tensor, frame_times: torch.Tensor, ratio: int, scale: int = 1
) -> torch.Tensor:
    """`motion` `[B, 4, h, w]` at `frame_times` `[B, F]` -> pixels (x, y) `[B, F, 2, H, W]`.

    H = 8 h / `scale`: the field of a picture that is `scale` times smaller.
    """
    factor = PLACE // scale
    field = F.interpolate(motion.float() * factor, scale_factor=factor, mode="bilinear")
    basis = motion_basis(frame_times, ratio)
    return torch.einsum(
        "bfj,bjdhw->bfdhw", basis, rearrange(field, "b (j d) h w -> b j d h w", d=2)
    )


def warp(picture: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """`picture` `[B, C, H, W]` through `field` `[B, F, 2, H, W]`: `[B, C, F, H, W]`, float32."""
    num_frames, height, width = field.shape[1], *field.shape[-2:]
    rows = torch.arange(height, device=field.device) + 0.5
    columns = torch.arange(width, device=field.device) + 0.5
    x = (field[:, :, 0] + columns) * (2 / width) - 1
    y = (field[:, :, 1] + rows[:, None]) * (2 / height) - 1
    # One tall grid for all frames: the picture is not copied for each. x and y stay planes in
    # memory, which `stack` and `grid_sample` are fastest with.
    grid = rearrange(torch.stack([x, y], dim=1), "b d f h w -> b (f h) w d")
    seen = F.grid_sample(picture.float(), grid, padding_mode="border", align_corners=False)
    return rearrange(seen, "b c (f h) w -> b c f h w", f=num_frames)


@torch.no_grad()
def estimate_motion(picture: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
    """Motion `[B, 4, h, w]` by which `picture` `[B, 3, H, W]` best becomes the frames of `chunk`.

    `chunk` `[B, 3, k + 1, H, W]` in [-1, 1]; `picture` is its first frame, as it is decoded.
    Choice: motion is estimated by search among straight ways, then by Gauss-Newton steps, coarse to
    fine (Lucas & Kanade, 1981). It descends on what the decoder will do, needs no training, and
    does the same at any size; a network is slow to learn it from nothing.

    The search sees colour: grass and fur of one grey are not each other. The steps see grey, which
    is a third of the work, and end near where they began.
    """
    ratio = chunk.shape[2] - 1
    grey = picture.float().mean(dim=1, keepdim=True)
    every = _seen(chunk, torch.arange(1, ratio + 1))
    spread = {math.ceil(ratio * n / NUM_SEARCHED) for n in range(1, NUM_SEARCHED + 1)}
    frames = torch.tensor(sorted(spread))
    some = _seen(chunk, frames)
    coloured = chunk[:, :, frames.to(chunk.device)].float()
    motion = _search(picture.float(), coloured, some[1], ratio)
    for scale, num_iterations, window, is_all in REFINEMENTS:
        seen = every if is_all else some
        motion = _refine(motion, grey, *seen, ratio, scale, num_iterations, window)
        if window > 1:
            motion = _median(motion)
    return motion


def _seen(chunk: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames number `frames` in grey, `[B, F, H, W]`, and their times `[B, F]`."""
    grey = chunk[:, :, frames.long().to(chunk.device)].float().mean(dim=1)
    return grey, frames.float().to(chunk.device).expand(len(chunk), -1)


def _shrink(pictures: torch.Tensor, scale: int) -> torch.Tensor:
    return F.avg_pool2d(pictures, scale) if scale > 1 else pictures


def _window_mean(maps: torch.Tensor, window: int) -> torch.Tensor:
    """Mean over window x window places of `[B, C, h, w]`, edges repeated."""
    if window == 1:
        return maps
    padding = (window // 2,) * 4
    return F.avg_pool2d(F.pad(maps, padding, mode="replicate"), window, stride=1)


def _median(motion: torch.Tensor) -> torch.Tensor:
    """Median of each 3 x 3 places: drops the odd one out."""
    padded = F.pad(motion, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(dim=-1).values


def _search(
    picture: torch.Tensor, frames: torch.Tensor, frame_times: torch.Tensor, ratio: int
) -> torch.Tensor:
    """The best straight way of each place, with its neighbours' help: coarse, then about that."""
    pictures = picture, frames, frame_times, ratio
    still = torch.zeros(len(picture), 2, *(side // PLACE for side in picture.shape[-2:]))
    still = still.to(picture)
    coarse, _ = _best_way(still, *pictures, COARSE_SCALE, COARSE_RANGE, COARSE_STEP)
    way, cost = _best_way(_median(coarse), *pictures, FINE_SCALE, FINE_RANGE, FINE_STEP)
    slow, slow_cost = _best_way(still, *pictures, FINE_SCALE, FINE_RANGE, FINE_STEP)
    way = torch.where((slow_cost < cost)[:, None], slow, way)
    return _median(torch.cat([way, torch.zeros_like(way)], dim=1)) / PLACE


def _best_way(
    start: torch.Tensor,
    picture: torch.Tensor,
    frames: torch.Tensor,
    frame_times: torch.Tensor,
    ratio: int,
    scale: int,
    reach: int,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of `start` `[B, 2, h, w]` in pixels and its neighbours; its cost `[B, h, w]`.

    `picture` `[B, C, H, W]` is to become `frames` `[B, C, F, H, W]`.
    """
    small = _shrink(picture, scale)
    targets = _shrink(frames.flatten(1, 2), scale).unflatten(1, frames.shape[1:3])
    num_frames, height, width = targets.shape[2:]
    offsets = torch.arange(-reach, reach + 1, step, device=picture.device).float()
    candidates = torch.cartesian_prod(offsets, offsets)[:, :, None, None]  # [n, 2, 1, 1] pixels
    basis = motion_basis(frame_times, ratio)[..., 0]  # [B, F]
    costs = []
    for group in candidates.split(SEARCH_GROUP):
        ways = start[:, None] + group  # [B, n, 2, h, w]
        lengths = ways.square().sum(dim=2).sqrt()
        fine = F.interpolate(ways.flatten(0, 1), (height, width)).unflatten(0, ways.shape[:2])
        field = torch.einsum("bf,bndhw->bnfdhw", basis, fine / scale).flatten(1, 2)
        seen = warp(small, field).unflatten(2, (len(group), num_frames))  # [B, C, n, F, ...]
        error = (seen - targets[:, :, None]).square().mean(dim=(1, 3))  # [B, n, H/scale, W/scale]
        costs.append(_window_mean(_shrink(error, PLACE // scale), 3) + SEARCH_PENALTY * lengths)
    cost, best = torch.cat(costs, dim=1).min(dim=1)  # [B, h, w]
    offset = rearrange(candidates[best][..., 0, 0], "b h w d -> b d h w")
    return start + offset, cost


def _pool_weighted(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """Sum of `[B, C, H, W]` under each place's share of bilinear interpolation: `[B, C, h, w]`."""
    ramp = (torch.arange(factor, device=maps.device, dtype=maps.dtype) + 0.5) / factor
    share = torch.cat([ramp, ramp.flip(0)]) / factor
    count = maps.shape[1]
    across = share.view(1, 1, 1, -1).expand(count, -1, -1, -1)
    maps = F.conv2d(maps, across, stride=(1, factor), padding=(0, factor // 2), groups=count)
    down = across.transpose(2, 3)
    return F.conv2d(maps, down, stride=(factor, 1), padding=(factor // 2, 0), groups=count)


def _refine(
    motion: torch.Tensor,
    grey: torch.Tensor,
    frames: torch.Tensor,
    frame_times: torch.Tensor,
    ratio: int,
    scale: int,
    num_iterations: int,
    window: int,
) -> torch.Tensor:
    """Gauss-Newton with momentum; each place's 4 x 4 block bounds the whole Hessian.

    The bound (Jensen: bilinear shares sum to 1) makes a step of length 1 safe without a search.
    """
    factor = PLACE // scale
    picture, targets = _shrink(grey, scale), _shrink(frames, scale)
    size = picture.shape[-2:]
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    slope_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    slope_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    stack = torch.cat([picture, slope_x, slope_y], dim=1)
    basis = motion_basis(frame_times, ratio)  # [B, F, 2]
    pairs = torch.einsum("bfj,bfk->bjkf", basis, basis).flatten(1, 2)
    identity = torch.eye(MOTION_CHANNELS, device=motion.device)
    velocity = torch.zeros_like(motion)
    for _ in range(num_iterations):
        ahead = motion + MOMENTUM * velocity
        seen = warp(stack, displacement(ahead, frame_times, ratio, scale))  # [B, 3, F, H, W]
        error, slopes = targets - seen[:, 0], seen[:, 1:]
        squares = [slopes[:, 0] ** 2, slopes[:, 0] * slopes[:, 1], slopes[:, 1] ** 2]
        falls = [slopes[:, 0] * error, slopes[:, 1] * error]
        # Frames first in memory, so that sums over them are matrix products without a copy.
        hessian = (pairs @ torch.stack(squares, dim=2).flatten(2)).unflatten(2, (3, *size))
        gradient = (basis.mT @ torch.stack(falls, dim=2).flatten(2)).unflatten(2, (2, *size))
        unique = torch.cat([hessian[:, 0], hessian[:, 1], hessian[:, 3], gradient.flatten(1, 2)], 1)
        pooled = _window_mean(_pool_weighted(unique, factor), window) / targets.shape[1]
        pooled = rearrange(pooled, "b c h w -> b h w c")
        xx, xy, yy = pooled[..., 0:9:3], pooled[..., 1:9:3], pooled[..., 2:9:3]  # (jk) each
        blocks = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
        upper = torch.cat([blocks[..., 0, :, :], blocks[..., 1, :, :]], dim=-1)
        lower = torch.cat([blocks[..., 1, :, :], blocks[..., 2, :, :]], dim=-1)
        matrix = torch.cat([upper, lower], dim=-2) + DAMPING * identity
        step = torch.linalg.solve(matrix, pooled[..., 9:])  # pixels of the smaller picture
        step = rearrange(step.clamp(-2, 2), "b h w c -> b c h w") / factor
        velocity = ahead + step - motion
        motion = motion + velocity
    return motion
