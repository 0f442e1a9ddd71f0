"""Motion latents: the warp, its time basis, and an estimation that finds what was put in."""

import pytest
import torch
import torch.nn.functional as F

from regen.models.loading import load_model
from regen.models.motion import (
    _window_mean,
    displacement,
    estimate_motion,
    motion_basis,
    pack_terms,
    unpack_terms,
    warp,
)
from regen.models.shortcut import LinearDecoder, MotionShortcut


def smooth_picture(size: int, seed: int = 0) -> torch.Tensor:
    """`[1, 3, size, size]` in [-1, 1], details of about 6 pixels."""
    coarse = torch.rand(1, 3, size // 6, size // 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(2 * coarse - 1, (size, size), mode="bicubic").clamp(-1, 1)


def moved(
    picture: torch.Tensor, way: tuple[float, float], bow: tuple[float, float]
) -> torch.Tensor:
    """9 frames `[1, 3, 9, H, W]`: `way` pixels (x, y) to the last frame, `bow` at half time."""
    basis = motion_basis(torch.arange(9.0), 8)  # [9, 2]
    pixels = basis @ torch.tensor([way, bow])  # [9, 2]
    field = pixels.T[None, :, :, None, None].expand(-1, -1, -1, *picture.shape[-2:])
    return warp(picture, field)


def test_no_motion_is_the_picture_itself() -> None:
    picture = smooth_picture(48)
    field = displacement(torch.zeros(1, 4, 6, 6), torch.tensor([[0.0, 3.5]]), 8)
    assert torch.allclose(
        warp(picture, field), picture[:, :, None].expand(-1, -1, 2, -1, -1), atol=1e-5
    )


def test_warp_is_grid_sample_of_each_frame() -> None:
    """It samples all frames at once, from one grid whose x and y are planes, for speed."""
    picture = smooth_picture(48)[..., :40]
    field = 3 * torch.randn(1, 2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    for frame, seen in enumerate(warp(picture, field).unbind(2)):
        x = (field[:, 0, frame] + torch.arange(40) + 0.5) * (2 / 40) - 1
        y = (field[:, 1, frame] + torch.arange(48)[:, None] + 0.5) * (2 / 48) - 1
        grid = torch.stack([x, y], dim=-1)
        expected = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        assert torch.allclose(seen, expected, atol=2e-5)


def test_window_mean_is_a_pooling_with_repeated_edges() -> None:
    """By sums of slices, for speed. The search weighs its penalty by it, the steps theirs."""
    maps = torch.randn(2, 5, 4, 7, generator=torch.Generator().manual_seed(0))
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    assert torch.allclose(_window_mean(maps, 3), F.avg_pool2d(padded, 3, stride=1), atol=1e-6)
    assert torch.equal(_window_mean(maps, 1), maps)


def test_whole_pixels_are_a_shift() -> None:
    picture = smooth_picture(48)
    motion = torch.zeros(1, 4, 6, 6)
    motion[:, 0], motion[:, 1] = 0.5, -0.25  # places: 4 pixels right, 2 up
    seen = warp(picture, displacement(motion, torch.tensor([[8.0]]), 8))[:, :, 0]
    assert torch.allclose(seen[..., 2:, :-4], picture[..., :-2, 4:], atol=1e-5)


def test_basis() -> None:
    """Still at time 0, whole way at k, the bow only between; outside the speed goes on."""
    times = torch.tensor([0.0, 4.0, 8.0])
    assert motion_basis(times, 8).tolist() == [[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]]
    times = torch.linspace(-8, 16, 2401)  # 0.01 frames apart
    values = motion_basis(times, 8)
    slope = (values[1:] - values[:-1]) / 0.01
    assert slope.diff(dim=0).abs().max() < 2e-3  # no kink; float32 differences are good to 1e-3
    outside = (times[:-2] < -0.02) | (times[:-2] > 8.02)
    assert slope.diff(dim=0)[outside].abs().max() < 1e-3


@pytest.mark.parametrize("way", [(0.0, 0.0), (5.5, -3.25), (-14.0, 9.0), (24.0, 20.0)])
def test_estimation_finds_a_straight_way(way: tuple[float, float]) -> None:
    picture = smooth_picture(96)
    motion = 8 * estimate_motion(picture, moved(picture, way, (0.0, 0.0)))
    middle = motion[0, :, 4:8, 4:8].flatten(1)  # the edges see what the picture does not hold
    expected = torch.tensor([*way, 0.0, 0.0])[:, None]
    assert (middle - expected).abs().max() < 0.1, middle.mean(dim=1)  # measured: 0.03


def test_estimation_finds_a_bow() -> None:
    picture = smooth_picture(96)
    motion = 8 * estimate_motion(picture, moved(picture, (10.0, 0.0), (-1.5, 2.0)))
    middle = motion[0, :, 4:8, 4:8].flatten(1).mean(dim=1)
    assert (middle - torch.tensor([10.0, 0.0, -1.5, 2.0])).abs().max() < 0.1


def test_the_search_sees_colour() -> None:
    """A picture whose grey is the same everywhere: only colours tell where it goes."""
    picture = smooth_picture(96)
    picture = picture - picture.mean(dim=1, keepdim=True)
    motion = 8 * estimate_motion(picture, moved(picture, (16.0, -8.0), (0.0, 0.0)))
    middle = motion[0, :2, 4:8, 4:8].flatten(1).mean(dim=1)
    assert (middle - torch.tensor([16.0, -8.0])).abs().max() < 2


def test_estimation_mends_the_picture() -> None:
    """A rotation, which no single way describes: what is left after the warp is far smaller."""
    picture, frames = smooth_picture(96), []
    for index in range(9):
        angle = torch.tensor(0.02 * index)
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
        grid = F.affine_grid(turn[None], [1, 3, 96, 96], align_corners=False)
        frames.append(F.grid_sample(picture, grid, padding_mode="border", align_corners=False))
    chunk = torch.stack(frames, dim=2)
    motion = estimate_motion(picture, chunk)
    seen = warp(picture, displacement(motion, torch.arange(9.0)[None], 8))
    inside = (..., slice(8, -8), slice(8, -8))
    before = (picture[:, :, None] - chunk)[inside].square().mean()
    assert (seen - chunk)[inside].square().mean() < before / 100


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (104, 8)])
@pytest.mark.parametrize("ratio", [1, 2, 4, 32])
def test_any_size_and_length(size: tuple[int, int], ratio: int) -> None:
    chunk = torch.rand(2, 3, ratio + 1, *size) * 2 - 1
    motion = estimate_motion(chunk[:, :, 0], chunk)
    assert motion.shape == (2, 4, size[0] // 8, size[1] // 8) and motion.isfinite().all()


def test_flat_pictures_do_not_move() -> None:
    chunk = torch.linspace(-1, 1, 9).view(1, 1, 9, 1, 1).expand(1, 3, 9, 32, 32)
    assert estimate_motion(chunk[:, :, 0], chunk).abs().max() < 1e-3


def test_batch_does_not_matter() -> None:
    chunks = torch.cat(
        [moved(smooth_picture(48, seed), (3.0, seed), (0.0, 1.0)) for seed in (0, 1)]
    )
    both = estimate_motion(chunks[:, :, 0], chunks)
    alone = estimate_motion(chunks[1:, :, 0], chunks[1:])
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_gradients_reach_motion_and_codes() -> None:
    shortcut = MotionShortcut(8, 8, 8, (1, 1))
    latents = torch.randn(1, 8, 2, 4, 4, requires_grad=True)
    shortcut(latents, torch.tensor([[5.0]])).square().mean().backward()
    assert latents.grad is not None
    reached = latents.grad.abs().sum(dim=(0, 3, 4)) > 0  # [8, 2]
    assert reached[:, 0].all() and reached[:7, 1].all() and not reached[7, 1]  # not the residual


def test_too_few_channels() -> None:
    with pytest.raises(ValueError, match="at least 6 latent_channels, got 5"):
        MotionShortcut(5, 8, 8, (1, 1))


def test_packed_terms_come_back() -> None:
    """Way and bow are means; only what an odd last row or column cannot tell is lost."""
    motion = torch.randn(2, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    places = pack_terms(motion, (6, 8))
    assert places.shape == (2, 4, 6, 8)
    assert torch.allclose(unpack_terms(places), motion, atol=1e-6)
    assert torch.allclose(F.avg_pool2d(places, 2), motion[:, :4], atol=1e-6)
    odd = unpack_terms(pack_terms(motion, (5, 7)))
    assert torch.allclose(odd[..., :-1, :-1], motion[..., :-1, :-1], atol=1e-6)
    assert torch.allclose(odd[:, :4], motion[:, :4], atol=1e-6)
    assert torch.allclose(odd[:, 8:12, :-1], motion[:, 8:12, :-1], atol=1e-6)  # along y: there
    assert odd[:, 4:8, :, -1].abs().max() < 1e-6 and odd[:, 12:, -1].abs().max() < 1e-6


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_a_shake_is_found(size: tuple[int, int]) -> None:
    """Eight terms follow what a way and a bow cannot."""
    picture = smooth_picture(72)[..., : size[0], : size[1]]
    times = torch.arange(33.0)[None]
    way = torch.zeros(1, 16, 4, 4)
    way[:, 0], way[:, 5], way[:, 8] = 0.3, 0.25, 0.2  # places: along x, a shake along y, along x
    field = displacement(way, times, 32, grid=2)[..., : size[0], : size[1]]
    chunk = warp(picture, field)
    errors = []
    for grid in (1, 2):
        motion = estimate_motion(picture, chunk, grid)
        seen = warp(picture, displacement(motion, times, 32, grid=grid)[..., : size[0], : size[1]])
        errors.append((seen - chunk)[..., 8:-8, 8:-8].square().mean().item())
    assert errors[1] < 0.1 * errors[0], errors


@pytest.mark.parametrize("name", ["tiny-8x8x8", "tiny-8x8x32"])
def test_under_autocast_only_the_networks_are_rounded(name: str) -> None:
    """Where they add nothing, what is searched, warped and coded is the same to the bit."""
    shortcut = load_model(name).shortcut
    networks = [shortcut.picture.encoder, shortcut.picture.decoder]
    if shortcut.temporal is not None:
        networks += [shortcut.temporal.encoder, shortcut.temporal.decoder]
    types = {}

    def note(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        types[module] = output.dtype

    for network in networks:
        network.register_forward_hook(note)
        torch.nn.init.zeros_(network.conv_out.weight)
        torch.nn.init.zeros_(network.conv_out.bias)
    chunk = moved(smooth_picture(64), (5.0, -3.0), (0.0, 0.0))
    times = torch.tensor([[0.0, 2.5, 8.0]])
    latents = shortcut.encode(chunk)
    video = shortcut(latents, times)
    assert [types[network] for network in networks] == [torch.float32] * len(networks)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(shortcut.encode(chunk), latents)
        assert torch.equal(shortcut(latents, times), video)
    assert [types[network] for network in networks] == [torch.bfloat16] * len(networks)


def test_the_linear_decoder_is_a_convolution_to_cosines_in_time() -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(12, ratio=8, num_cosines=9)
    codes, times = torch.randn(2, 12, 3, 5), torch.tensor([[0.0, 3.5], [8.0, -1.0]])
    planes = decoder.synthesis(F.pad(codes, (1, 1, 1, 1), mode="replicate"))
    planes = planes.unflatten(1, (9, 3, 8, 8))  # [B, J, c, y, x, h, w]
    basis = torch.cos(torch.pi * torch.arange(9) * times[..., None] / 8)
    expected = torch.einsum("bfj,bjcyxhw->bcfhywx", basis, planes).reshape(2, 3, 2, 24, 40)
    assert torch.allclose(decoder(codes, times), expected, atol=1e-5)
