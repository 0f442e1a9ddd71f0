"""Motion estimation, without learned weights: of a chunk (encoder), and to the next one (decoder).

Choice: motion is estimated by search among straight motions, then by Gauss-Newton steps, coarse to
fine (Lucas & Kanade, 1981). It descends on what the decoder will do, needs no training, and does
the same at any size; a network is slow to learn it from nothing.
"""

import math
from functools import reduce

import torch
import torch.nn.functional as F
from einops import rearrange

from regen.model.motion import (
    GRID,
    NEXT_CELL,
    NUM_TERMS,
    displacement,
    interpolate,
    motion_basis,
    warp,
)
from regen.model.patches import in_float32

# Choice: motion is searched up to 96 pixels from the first frame to the last, along x and along y.
# Search costs as the square of its range.
BLOCK = 8  # pixels, of the search
COARSE_SCALE, COARSE_RANGE, COARSE_STEP = 8, 96, 8  # pixels, from the first frame to the last
FINE_SCALE, FINE_RANGE, FINE_STEP = 4, 8, 4  # about the best of the coarse, and about no motion
SEARCH_GROUP = 64  # displacements compared at once
SEARCH_PENALTY = 8e-6  # squared error in [-1, 1] units that a pixel of displacement must gain
NUM_SEARCHED = 16  # later frames that search and coarse steps look at
# Scale of the pictures, iterations, window in cells of the grid, whether at all frames; twice as
# many iterations for chunks of more than LONG_CHUNK frames:
REFINEMENTS = ((4, 6, 3, False), (2, 6, 3, False), (2, 4, 1, True), (1, 3, 1, True))
LONG_CHUNK = 17
NEXT_REFINEMENTS = ((4, 6, 3), (2, 6, 3), (1, 4, 1))  # scale, iterations, window
MOMENTUM = 0.7
# Choice: no term in time is longer than 128 pixels. Where a picture has no structure the steps run
# away, and take the neighbours with them.
MAX_TERM = 128.0  # pixels
DAMPING = 5e-5  # of the squared gradient of the picture, in [-1, 1] units per pixel


@torch.compiler.disable  # its loops would be unrolled: minutes to compile, nothing gained
@torch.no_grad()
def estimate_motion(chunk: torch.Tensor) -> torch.Tensor:
    """Motion by which the first frame of `chunk` `[B, 3, n, H, W]`, n > 1, best becomes the others.

    `[B, 16, ceil(H/16), ceil(W/16)]` in pixels; see `regen.model.motion`. Its basis spans n - 1
    frames.

    The search sees colour: grass and fur of one grey are not each other. The steps see grey, which
    is a third of the work, and end near where they began.
    """
    with in_float32(chunk):
        padding = (0, -chunk.shape[-1] % GRID, 0, -chunk.shape[-2] % GRID)
        chunk = F.pad(chunk.float(), (*padding, 0, 0), mode="replicate")
        ratio = chunk.shape[2] - 1
        grey = chunk.mean(dim=1)  # [B, n, H, W]
        spread = {math.ceil(ratio * index / NUM_SEARCHED) for index in range(1, NUM_SEARCHED + 1)}
        some = torch.tensor(sorted(spread), device=chunk.device)
        every = torch.arange(1, ratio + 1, device=chunk.device)
        motion = _search(chunk[:, :, 0], chunk[:, :, some], some.expand(len(chunk), -1), ratio)
        motion = F.avg_pool2d(motion, GRID // BLOCK)
        motion = F.pad(motion, (0, 0, 0, 0, 0, 2 * NUM_TERMS - motion.shape[1]))
        for scale, num_iterations, window, is_all in REFINEMENTS:
            frames = every if is_all else some
            basis = motion_basis(frames.expand(len(chunk), -1), ratio, NUM_TERMS)
            num_iterations *= 2 if chunk.shape[2] > LONG_CHUNK else 1
            motion = _refine(
                motion, grey[:, :1], grey[:, frames], basis, scale, num_iterations, window, GRID
            )
        return motion


@torch.compiler.disable
@torch.no_grad()
def motion_to_next(
    first: torch.Tensor, following: torch.Tensor, motion: torch.Tensor, ratio: int, time: float
) -> torch.Tensor:
    """Motion from the next chunk's first frame to this one's: `[B, 2, ceil(H/16) 2, ...]`, pixels.

    `first`, `following` `[B, 3, H, W]`; the steps begin at the chunk's `motion` `[B, 16, m, n]`,
    whose basis spans `ratio` frames, at `time` frames.
    """
    with in_float32(first):
        height, width = first.shape[-2:]
        padding = (0, -width % GRID, 0, -height % GRID)
        first, following = (
            F.pad(one.float(), padding, mode="replicate") for one in (first, following)
        )
        times = torch.full((len(first), 1), time, device=first.device)
        field = displacement(motion, times, ratio)[:, :, 0]
        field = F.avg_pool2d(field, NEXT_CELL)
        basis = torch.ones(len(first), 1, 1, device=first.device)
        grey, target = (one.mean(dim=1, keepdim=True) for one in (first, following))
        for scale, num_iterations, window in NEXT_REFINEMENTS:
            field = _refine(field, grey, target, basis, scale, num_iterations, window, NEXT_CELL)
        return field


def _shrink(pictures: torch.Tensor, scale: int) -> torch.Tensor:
    return F.avg_pool2d(pictures, scale) if scale > 1 else pictures


def _window_mean(maps: torch.Tensor, window: int) -> torch.Tensor:
    """Mean over window x window cells of `[B, C, h, w]`, edges repeated."""
    if window == 1:
        return maps
    padded = F.pad(maps, (window // 2,) * 4, mode="replicate")
    height, width = maps.shape[-2:]
    rows = reduce(torch.add, (padded[..., y : y + height, :] for y in range(window)))
    return reduce(torch.add, (rows[..., x : x + width] for x in range(window))) / window**2


def _median(motion: torch.Tensor) -> torch.Tensor:
    """Median of each 3 x 3 cells: drops the odd one out."""
    padded = F.pad(motion, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(dim=-1).values


def _search(
    picture: torch.Tensor, frames: torch.Tensor, frame_times: torch.Tensor, ratio: int
) -> torch.Tensor:
    """The best straight motion of each block, with its neighbours' help: coarse, then about that.

    `[B, 4, H/8, W/8]` in pixels: linear motion, and a quadratic term of 0.
    """
    pictures = picture, frames, frame_times, ratio
    still = picture.new_zeros(len(picture), 2, *(side // BLOCK for side in picture.shape[-2:]))
    coarse, _ = _best_motion(still, *pictures, COARSE_SCALE, COARSE_RANGE, COARSE_STEP)
    motion, cost = _best_motion(_median(coarse), *pictures, FINE_SCALE, FINE_RANGE, FINE_STEP)
    slow, slow_cost = _best_motion(still, *pictures, FINE_SCALE, FINE_RANGE, FINE_STEP)
    motion = torch.where((slow_cost < cost)[:, None], slow, motion)
    return _median(torch.cat([motion, torch.zeros_like(motion)], dim=1))


def _best_motion(
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
        motions = start[:, None] + group  # [B, n, 2, h, w]
        lengths = motions.square().sum(dim=2).sqrt()
        fine = F.interpolate(motions.flatten(0, 1), (height, width))
        fine = fine.unflatten(0, motions.shape[:2])
        # Frames before candidates, so that their sum is over whole planes.
        field = torch.einsum("bf,bndhw->bdfnhw", basis, fine / scale).flatten(2, 3)
        warped = warp(small, field).unflatten(2, (num_frames, len(group)))  # [B, C, F, n, ...]
        error = (warped - targets[:, :, :, None]).square().flatten(1, 2).mean(dim=1)
        costs.append(_window_mean(_shrink(error, BLOCK // scale), 3) + SEARCH_PENALTY * lengths)
    cost, best = torch.cat(costs, dim=1).min(dim=1)  # [B, h, w]
    offset = rearrange(candidates[best][..., 0, 0], "b h w d -> b d h w")
    return start + offset, cost


def _pool_weighted(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """Sum of `[B, C, H, W]` under each cell's part of bilinear interpolation: `[B, C, h, w]`."""
    ramp = (torch.arange(factor, device=maps.device, dtype=maps.dtype) + 0.5) / factor
    part = torch.cat([ramp, ramp.flip(0)]) / factor
    count = maps.shape[1]
    across = part.view(1, 1, 1, -1).expand(count, -1, -1, -1)
    maps = F.conv2d(maps, across, stride=(1, factor), padding=(0, factor // 2), groups=count)
    down = across.transpose(2, 3)
    return F.conv2d(maps, down, stride=(factor, 1), padding=(factor // 2, 0), groups=count)


def _refine(
    motion: torch.Tensor,
    picture: torch.Tensor,
    targets: torch.Tensor,
    basis: torch.Tensor,
    scale: int,
    num_iterations: int,
    window: int,
    cell: int,
) -> torch.Tensor:
    """Gauss-Newton with momentum on `motion` `[B, 2 J, m, n]` (pixels, on cells of `cell` pixels).

    `picture` `[B, 1, H, W]` is to become `targets` `[B, F, H, W]`, of `basis` `[B, F, J]` in time;
    both are shrunk by `scale`. A `window` above 1 ends with a median.

    Each cell's own block bounds the whole Hessian (Jensen: bilinear weights sum to 1), so a step of
    length 1 is safe without a search.
    """
    num_terms = motion.shape[1] // 2
    cell = cell // scale
    motion = motion / scale
    picture, targets = _shrink(picture, scale), _shrink(targets, scale)
    size = picture.shape[-2:]
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    slope_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    slope_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    stack = torch.cat([picture, slope_x, slope_y], dim=1)
    first, second = torch.triu_indices(num_terms, num_terms, device=motion.device)
    pairs = (basis[..., first] * basis[..., second]).mT  # [B, pairs, F]
    index = torch.zeros(num_terms, num_terms, dtype=torch.long, device=motion.device)
    index[first, second] = index[second, first] = torch.arange(len(first)).to(motion.device)
    identity = torch.eye(2 * num_terms, device=motion.device)
    velocity = torch.zeros_like(motion)
    # Written into again and again. Frames come first, so that sums over them are matrix products.
    squares = stack.new_empty(*targets.shape[:2], 3, *size)
    falls = stack.new_empty(*targets.shape[:2], 2, *size)
    for _ in range(num_iterations):
        ahead = motion + MOMENTUM * velocity
        terms = rearrange(interpolate(ahead, cell), "b (j d) h w -> b d j (h w)", d=2)
        field = (basis[:, None] @ terms).unflatten(3, size)
        warped, along_x, along_y = warp(stack, field).unbind(1)  # [B, F, H, W] each
        error = targets - warped
        torch.mul(along_x, along_x, out=squares[:, :, 0])
        torch.mul(along_x, along_y, out=squares[:, :, 1])
        torch.mul(along_y, along_y, out=squares[:, :, 2])
        torch.mul(along_x, error, out=falls[:, :, 0])
        torch.mul(along_y, error, out=falls[:, :, 1])
        hessian = (pairs @ squares.flatten(2)).unflatten(2, (3, *size))
        gradient = (basis.mT @ falls.flatten(2)).unflatten(2, (2, *size))
        unique = torch.cat([hessian.flatten(1, 2), gradient.flatten(1, 2)], dim=1)
        pooled = _window_mean(_pool_weighted(unique, cell), window)
        pooled = rearrange(pooled / targets.shape[1], "b c h w -> b h w c")
        squared, fall = pooled.split([3 * len(first), 2 * num_terms], dim=-1)
        xx, xy, yy = squared.unflatten(-1, (-1, 3))[..., index, :].unbind(-1)  # [..., J, J] each
        blocks = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
        matrix = rearrange(blocks, "... j k d e -> ... (j d) (k e)") + DAMPING * identity
        step = torch.linalg.solve(matrix, fall)
        step = rearrange(step.clamp(-2, 2), "b h w c -> b c h w")
        velocity = ahead + step - motion
        motion = (motion + velocity).clamp(-MAX_TERM / scale, MAX_TERM / scale)
    motion = motion * scale
    return _median(motion) if window > 1 else motion
