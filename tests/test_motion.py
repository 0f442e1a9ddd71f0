"""Motion: the warp, its time basis, its latents, and an estimation that finds what was put in."""

import pytest
import torch
import torch.nn.functional as F

from regen.model.motion import (
    displacement,
    field_to_next,
    from_latents,
    interpolate,
    motion_basis,
    to_latents,
    warp,
)
from regen.model.motion_estimation import estimate_motion, motion_to_next


def smooth_picture(size: int, seed: int = 0) -> torch.Tensor:
    """`[1, 3, size, size]` in [-1, 1], details of about 6 pixels."""
    coarse = torch.rand(1, 3, size // 6, size // 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(2 * coarse - 1, (size, size), mode="bicubic").clamp(-1, 1)


def constant_field(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """`pixels` `[F, 2]` -> `[1, 2, F, size, size]`."""
    return pixels.T[None, :, :, None, None].expand(-1, -1, -1, size, size)


def moved(
    picture: torch.Tensor, linear: tuple[float, float], bow: tuple[float, float], length: int = 9
) -> torch.Tensor:
    """Frames `[1, 3, length, H, W]`: `linear` pixels (x, y) to the last, `bow` at half time."""
    basis = motion_basis(torch.arange(float(length)), length - 1)
    return warp(picture, constant_field(basis @ torch.tensor([linear, bow]), picture.shape[-1]))


# -- the warp and its basis ------------------------------------------------------------------------


def test_no_motion_is_the_picture_itself() -> None:
    picture = smooth_picture(48)
    field = displacement(torch.zeros(1, 16, 3, 3), torch.tensor([[0.0, 3.5]]), 8)
    assert torch.allclose(
        warp(picture, field), picture[:, :, None].expand(-1, -1, 2, -1, -1), atol=1e-5
    )


def test_warp_is_grid_sample_of_each_frame() -> None:
    """It samples all frames at once, from one grid whose x and y are planes, for speed."""
    picture = smooth_picture(48)[..., :40]
    field = 3 * torch.randn(1, 2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    for frame, warped in enumerate(warp(picture, field).unbind(2)):
        x = (field[:, 0, frame] + torch.arange(40) + 0.5) * (2 / 40) - 1
        y = (field[:, 1, frame] + torch.arange(48)[:, None] + 0.5) * (2 / 48) - 1
        grid = torch.stack([x, y], dim=-1)
        expected = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        assert torch.allclose(warped, expected, atol=2e-5)


def test_basis() -> None:
    """Still at time 0, all of the linear motion at k, the quadratic only between; outside the speed
    goes on."""
    times = torch.tensor([0.0, 4.0, 8.0])
    assert motion_basis(times, 8).tolist() == [[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]]
    start, end = motion_basis(torch.tensor([0.0, 8.0]), 8, 8)
    assert not start.any() and torch.allclose(end, torch.eye(8)[0], atol=1e-5)
    times = torch.linspace(-8, 16, 2401)  # 0.01 frames apart
    values = motion_basis(times, 8)
    slope = (values[1:] - values[:-1]) / 0.01
    assert slope.diff(dim=0).abs().max() < 2e-3  # no kink; float32 differences are good to 1e-3
    outside = (times[:-2] < -0.02) | (times[:-2] > 8.02)
    assert slope.diff(dim=0)[outside].abs().max() < 1e-3


# -- latents ---------------------------------------------------------------------------------------


def test_motion_latents_come_back() -> None:
    """Linear and quadratic motion are means of the latents' asinh; only what an odd last row or
    column cannot tell is lost."""
    motion = 9 * torch.randn(2, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    latents = to_latents(motion, (6, 8))
    assert latents.shape == (2, 4, 6, 8)
    assert torch.allclose(from_latents(latents), motion, rtol=1e-4, atol=1e-4)
    assert torch.allclose(F.avg_pool2d(latents, 2), torch.asinh(motion[:, :4] / 2), atol=1e-5)
    for height, width in ((5, 8), (6, 7), (5, 7)):
        expected = motion.clone()
        if width % 2:  # differences along x, and along both
            expected[:, 4:8, :, -1] = expected[:, 12:, :, -1] = 0
        if height % 2:
            expected[:, 8:12, -1] = expected[:, 12:, -1] = 0
        odd = from_latents(to_latents(motion, (height, width)))
        assert torch.allclose(odd, expected, rtol=1e-4, atol=1e-4), (height, width)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_the_smallest_latents_tell_linear_motion(size: tuple[int, int]) -> None:
    cells = [-(-side // 2) for side in size]
    motion = torch.randn(1, 16, *cells, generator=torch.Generator().manual_seed(0))
    back = from_latents(to_latents(motion, size))
    assert torch.allclose(back[:, :4], motion[:, :4], atol=1e-4)


def test_latents_from_nowhere_are_a_bounded_motion() -> None:
    """Those of a generative model may be anything."""
    assert from_latents(torch.full((1, 4, 2, 2), 1e4)).abs().max() < 150


# -- estimation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [(0.0, 0.0), (5.5, -3.25), (-14.0, 9.0), (24.0, 20.0)])
def test_estimation_finds_a_straight_motion(linear: tuple[float, float]) -> None:
    motion = estimate_motion(moved(smooth_picture(96), linear, (0.0, 0.0)))
    assert motion.shape == (1, 16, 6, 6)
    middle = motion[0, :4, 2:4, 2:4].flatten(1)  # the edges see what the picture does not hold
    expected = torch.tensor([*linear, 0.0, 0.0])[:, None]
    assert (middle - expected).abs().max() < 0.3, middle


def test_estimation_finds_a_bow() -> None:
    motion = estimate_motion(moved(smooth_picture(96), (10.0, 0.0), (-1.5, 2.0)))
    middle = motion[0, :4, 2:4, 2:4].flatten(1).mean(dim=1)
    assert (middle - torch.tensor([10.0, 0.0, -1.5, 2.0])).abs().max() < 0.1


def test_the_search_sees_colour() -> None:
    """A picture whose grey is the same everywhere: only colours tell where it goes."""
    picture = smooth_picture(96)
    picture = picture - picture.mean(dim=1, keepdim=True)
    motion = estimate_motion(moved(picture, (16.0, -8.0), (0.0, 0.0)))
    middle = motion[0, :2, 2:4, 2:4].flatten(1).mean(dim=1)
    assert (middle - torch.tensor([16.0, -8.0])).abs().max() < 2


def test_a_rotation_is_followed() -> None:
    """No single motion describes it: what is left after the warp is far smaller than before."""
    picture, frames = smooth_picture(96), []
    for index in range(9):
        angle = torch.tensor(0.02 * index)
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
        grid = F.affine_grid(turn[None], [1, 3, 96, 96], align_corners=False)
        frames.append(F.grid_sample(picture, grid, padding_mode="border", align_corners=False))
    chunk = torch.stack(frames, dim=2)
    warped = warp(picture, displacement(estimate_motion(chunk), torch.arange(9.0)[None], 8))
    inside = (..., slice(8, -8), slice(8, -8))
    before = (picture[:, :, None] - chunk)[inside].square().mean()
    assert (warped - chunk)[inside].square().mean() < before / 100


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_a_shake_is_followed(size: tuple[int, int]) -> None:
    """Eight terms in time follow what a linear and a quadratic one cannot."""
    picture = smooth_picture(72)[..., : size[0], : size[1]]
    times = torch.arange(33.0)[None]
    put_in = torch.zeros(1, 16, 4, 4)
    put_in[:, 0], put_in[:, 5], put_in[:, 8] = 2.4, 2, 1.6  # along x; shakes along y and along x
    chunk = warp(picture, displacement(put_in, times, 32)[..., : size[0], : size[1]])
    motion = estimate_motion(chunk)
    errors = []
    for terms in (motion[:, :4], motion):
        field = displacement(terms, times, 32)[..., : size[0], : size[1]]
        errors.append((warp(picture, field) - chunk)[..., 8:-8, 8:-8].square().mean().item())
    assert errors[1] < 0.1 * errors[0], errors


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (104, 8)])
@pytest.mark.parametrize("ratio", [1, 2, 4, 32])
def test_any_size_and_length(size: tuple[int, int], ratio: int) -> None:
    motion = estimate_motion(torch.rand(2, 3, ratio + 1, *size) * 2 - 1)
    assert motion.shape == (2, 16, *(-(-side // 16) for side in size)) and motion.isfinite().all()


def test_flat_pictures_do_not_move() -> None:
    chunk = torch.linspace(-1, 1, 9).view(1, 1, 9, 1, 1).expand(1, 3, 9, 32, 32)
    assert estimate_motion(chunk).abs().max() < 1e-3


def test_the_batch_does_not_matter() -> None:
    chunks = torch.cat(
        [moved(smooth_picture(48, seed), (3.0, seed), (0.0, 1.0)) for seed in (0, 1)]
    )
    assert torch.allclose(estimate_motion(chunks)[1:], estimate_motion(chunks[1:]), atol=1e-4)


def test_under_autocast_motion_keeps_its_precision() -> None:
    chunk = moved(smooth_picture(48), (5.0, -3.0), (1.0, 0.0))
    first, last = chunk[:, :, 0], chunk[:, :, 8]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            motion = estimate_motion(chunk)
            field = displacement(motion, torch.tensor([[2.5, 8.0]]), 8)
            results.append((motion, field, motion_to_next(first, last, motion, 8, 8.0)))
    for exact, other in zip(*results, strict=True):
        assert torch.equal(exact, other)


# -- to the next chunk -----------------------------------------------------------------------------


def test_motion_to_the_next_chunk_is_that_of_a_shifted_picture() -> None:
    """It starts at the chunk's own motion, which goes on, and ends where the picture is."""
    picture = smooth_picture(96)
    shift = torch.tensor([[9.0, -4.0]])
    following = warp(picture, constant_field(shift, 96))[:, :, 0]
    motion = torch.zeros(1, 16, 6, 6)
    motion[:, 0], motion[:, 1] = 6, -2  # over 8 frames; the next chunk begins a frame later
    found = motion_to_next(picture, following, motion, 8, 9.0)
    assert found.shape == (1, 2, 12, 12)
    middle = found[0, :, 4:8, 4:8].flatten(1)
    assert (middle - shift.T).abs().max() < 0.1, middle


def test_both_ways_lead_to_one_pixel() -> None:
    """y + to_first(y) = x + field(x), where motion changes by up to a tenth of a pixel a pixel."""
    generator = torch.Generator().manual_seed(0)
    to_first = interpolate(torch.randn(1, 2, 4, 4, generator=generator), 16)
    field = interpolate(torch.randn(1, 2, 4, 4, generator=generator), 16)[:, :, None]
    found = field_to_next(field, to_first)
    left = (found + warp(to_first, found) - field)[..., 8:-8, 8:-8]
    assert left.abs().max() < 0.05 < (field - to_first[:, :, None]).abs().max()
