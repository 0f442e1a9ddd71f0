"""Motion of a chunk: its time basis, the warp by it, and its estimation without learned weights.

Motion is a backward field: where, in the first frame, each pixel of a later frame comes from. It is
given on a grid by the amplitudes, in places of 8 pixels, of J terms in time, each along x and y:
the way from the first frame to the last (linear in time), the bow of that way (a parabola), and
then sines, of ever faster shakes. Either J = 2 for each place of 8 x 8 pixels, or J = 8 for each
2 x 2 places; both are four numbers a place, the motion latent.

Choice: long chunks have eight terms in time for each 2 x 2 places in place of two for each place. A
hand-held camera shakes; over 33 frames that is worth 1.8 dB of the warp in clips that move.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

MOTION_CHANNELS = 4
PLACE = 8  # pixels
NUM_TERMS = {1: 2, 2: 8}  # in time, by the places on a side of the motion's grid

# Choice: motion is searched up to 12 pixels a frame at k = 8, along x and along y. Search costs as
# the square of its range.
COARSE_SCALE, COARSE_RANGE, COARSE_STEP = 8, 96, 8  # pixels, from the first frame to the last
FINE_SCALE, FINE_RANGE, FINE_STEP = 4, 8, 4  # about the best of the coarse, and about no motion
SEARCH_GROUP = 64  # displacements compared at once
SEARCH_PENALTY = 8e-6  # squared error in [-1, 1] units that a pixel of displacement must gain
# By the places on a side of the grid. Later frames that search and coarse steps look at:
NUM_SEARCHED = {1: 4, 2: 16}
# Scale, iterations, window in places of the grid, whether at all frames:
REFINEMENTS = {
    1: ((4, 4, 3, False), (2, 4, 3, False), (2, 4, 1, True), (1, 8, 1, True)),
    2: ((4, 8, 3, False), (2, 8, 3, False), (2, 24, 1, True), (1, 16, 1, True)),
}
MOMENTUM = 0.7
DAMPING = 5e-5  # of the squared gradient of the picture, in [-1, 1] units per pixel


def motion_basis(frame_times: torch.Tensor, ratio: int, num_terms: int = 2) -> torch.Tensor:
    """(s, 4 s (1 - s), sin 2 pi s, sin 3 pi s, ...) for s = `frame_times` / k: `[..., num_terms]`.

    Outside the chunk the parabola goes on as its tangent: extrapolated motion keeps its speed.
    """
    s = frame_times.float() / ratio
    bow = torch.where((s < 0) | (s > 1), 4 * torch.minimum(s, 1 - s), 4 * s * (1 - s))
    sines = [torch.sin(math.pi * order * s) for order in range(2, num_terms)]
    return torch.stack([s, bow, *sines], dim=-1)


def displacement(
    motion: torch.Tensor, frame_times: torch.Tensor, ratio: int, scale: int = 1, grid: int = 1
) -> torch.Tensor:
    """`motion` `[B, 2 J, h, w]` at `frame_times` `[B, F]` -> pixels (x, y) `[B, 2, F, H, W]`.

    `grid`: places on a side of the motion's grid. H = 8 h `grid` / `scale`: the field of a picture
    that is `scale` times smaller.
    """
    field = F.interpolate(
        motion.float() * (PLACE / scale), scale_factor=PLACE * grid // scale, mode="bilinear"
    )
    basis = motion_basis(frame_times, ratio, motion.shape[1] // 2)
    return torch.einsum(
        "bfj,bjdhw->bdfhw", basis, rearrange(field, "b (j d) h w -> b j d h w", d=2)
    )


def pack_terms(motion: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[B, 16, ceil(h/2), ceil(w/2)]` -> `[B, 4, h, w]` for `size` (h, w): way and bow are the mean
    of each 2 x 2 places, the other terms their differences along x, along y, and along both.

    Where an odd last row or column leaves half of them, there are no differences across it: those
    terms are lost.
    """
    height, width = size
    mean, across, down, both = motion.unflatten(1, (4, 4)).unbind(1)
    if width % 2:
        across, both = _without_last_column(across), _without_last_column(both)
    if height % 2:
        down, both = (_without_last_column(one.mT).mT for one in (down, both))
    top = torch.stack([mean + across + down + both, mean - across + down - both], dim=-1)
    bottom = torch.stack([mean + across - down - both, mean - across - down + both], dim=-1)
    places = rearrange([top, bottom], "q b c h w p -> b c (h q) (w p)")
    return places[..., :height, :width]


def unpack_terms(places: torch.Tensor) -> torch.Tensor:
    """`[B, 4, h, w]` -> `[B, 16, ceil(h/2), ceil(w/2)]`, see `pack_terms`."""
    places = F.pad(places, (0, places.shape[-1] % 2, 0, places.shape[-2] % 2), mode="replicate")
    parts = rearrange(places, "b c (h q) (w p) -> (q p) b c h w", q=2, p=2)
    left_up, right_up, left_down, right_down = parts
    mean = left_up + right_up + left_down + right_down
    across = left_up - right_up + left_down - right_down
    down = left_up + right_up - left_down - right_down
    both = left_up - right_up - left_down + right_down
    return torch.cat([mean, across, down, both], dim=1) / 4


def _without_last_column(terms: torch.Tensor) -> torch.Tensor:
    return F.pad(terms[..., :-1], (0, 1))


@torch.compiler.disable  # what a compiler makes of grid_sample takes longer, on a CPU
def warp(picture: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """`picture` `[B, C, H, W]` through `field` `[B, 2, F, H, W]`: `[B, C, F, H, W]`, float32."""
    num_frames, height, width = field.shape[2:]
    rows = torch.arange(height, device=field.device) + 0.5
    columns = torch.arange(width, device=field.device) + 0.5
    x = (field[:, 0] + columns) * (2 / width) - 1
    y = (field[:, 1] + rows[:, None]) * (2 / height) - 1
    grid = rearrange(torch.stack([x, y], dim=-1), "b f h w d -> b (f h) w d")
    seen = F.grid_sample(picture.float(), grid, padding_mode="border", align_corners=False)
    return rearrange(seen, "b c (f h) w -> b c f h w", f=num_frames)


@torch.compiler.disable  # its loops would be unrolled: minutes to compile, nothing gained
@torch.no_grad()
def estimate_motion(picture: torch.Tensor, chunk: torch.Tensor, grid: int = 1) -> torch.Tensor:
    """Motion by which `picture` `[B, 3, H, W]` best becomes the frames of `chunk`.

    `[B, 2 J, h, w]` on the grid of `grid` x `grid` places (`NUM_TERMS`), h = ceil(H / 8 / grid).
    `chunk` `[B, 3, k + 1, H, W]` in [-1, 1]; `picture` is its first frame, as it is decoded.
    Choice: motion is estimated by search among straight ways, then by Gauss-Newton steps, coarse to
    fine (Lucas & Kanade, 1981). It descends on what the decoder will do, needs no training, and
    does the same at any size; a network is slow to learn it from nothing.

    The search sees colour: grass and fur of one grey are not each other. The steps see grey, which
    is a third of the work, and end near where they began.
    """
    side = PLACE * grid
    padding = (0, -chunk.shape[-1] % side, 0, -chunk.shape[-2] % side)
    picture = F.pad(picture.float(), padding, mode="replicate")
    chunk = F.pad(chunk, (*padding, 0, 0), mode="replicate")
    ratio = chunk.shape[2] - 1
    grey = picture.mean(dim=1, keepdim=True)
    every = _seen(chunk, torch.arange(1, ratio + 1))
    spread = {math.ceil(ratio * n / NUM_SEARCHED[grid]) for n in range(1, NUM_SEARCHED[grid] + 1)}
    frames = torch.tensor(sorted(spread))
    some = _seen(chunk, frames)
    coloured = chunk[:, :, frames.to(chunk.device)].float()
    motion = _search(picture, coloured, some[1], ratio)
    if grid > 1:
        motion = _shrink(motion, grid)
        motion = F.pad(motion, (0, 0, 0, 0, 0, 2 * NUM_TERMS[grid] - motion.shape[1]))
    for scale, num_iterations, window, is_all in REFINEMENTS[grid]:
        seen = every if is_all else some
        motion = _refine(motion, grey, *seen, ratio, scale, num_iterations, window, grid)
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
        lengths = ways.norm(dim=2)
        fine = F.interpolate(ways.flatten(0, 1), (height, width)).unflatten(0, ways.shape[:2])
        field = torch.einsum("bf,bndhw->bdnfhw", basis, fine / scale).flatten(2, 3)
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
    grid: int,
) -> torch.Tensor:
    """Gauss-Newton with momentum; each place's own block bounds the whole Hessian.

    The bound (Jensen: bilinear shares sum to 1) makes a step of length 1 safe without a search.
    """
    num_terms = motion.shape[1] // 2
    picture, targets = _shrink(grey, scale), _shrink(frames, scale)
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    slope_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    slope_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    stack = torch.cat([picture, slope_x, slope_y], dim=1)
    basis = motion_basis(frame_times, ratio, num_terms)  # [B, F, J]
    first, second = torch.triu_indices(num_terms, num_terms, device=motion.device)
    pairs = torch.einsum("bfp,bfp->bpf", basis[..., first], basis[..., second])
    place_of = torch.zeros(num_terms, num_terms, dtype=torch.long, device=motion.device)
    place_of[first, second] = place_of[second, first] = torch.arange(len(first)).to(motion.device)
    identity = torch.eye(2 * num_terms, device=motion.device)
    velocity = torch.zeros_like(motion)
    for _ in range(num_iterations):
        ahead = motion + MOMENTUM * velocity
        field = displacement(ahead, frame_times, ratio, scale, grid)
        seen, along_x, along_y = warp(stack, field).unbind(1)  # [B, F, H, W] each
        error = targets - seen
        slopes = torch.stack([along_x, along_y], dim=1)
        squares = torch.stack([along_x**2, along_x * along_y, along_y**2], 1)
        hessian = torch.einsum("bpf,bsfhw->bpshw", pairs, squares)
        gradient = torch.einsum("bfj,bdfhw->bjdhw", basis, slopes * error[:, None])
        unique = torch.cat([hessian.flatten(1, 2), gradient.flatten(1, 2)], dim=1)
        pooled = _window_mean(_pool_weighted(unique, PLACE * grid // scale), window)
        pooled = rearrange(pooled / targets.shape[1], "b c h w -> b h w c")
        squared, fall = pooled.split([3 * len(first), 2 * num_terms], dim=-1)
        xx, xy, yy = squared.unflatten(-1, (-1, 3))[..., place_of, :].unbind(-1)  # [..., J, J] each
        blocks = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
        matrix = rearrange(blocks, "... j k d e -> ... (j d) (k e)") + DAMPING * identity
        step = torch.linalg.solve(matrix, fall)  # pixels of the smaller picture
        step = rearrange(step.clamp(-2, 2), "b h w c -> b c h w") * (scale / PLACE)
        velocity = ahead + step - motion
        motion = motion + velocity
    return motion
