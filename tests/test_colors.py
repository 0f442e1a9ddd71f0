"""Colour augmentation against closed forms."""

import numpy as np
import torch

from regen.data import colors
from regen.data.colors import augment_colors, hue_rotation


def test_a_third_of_a_turn_exchanges_the_primaries() -> None:
    """Red becomes green, green blue, blue red."""
    turned = hue_rotation(120)
    assert torch.allclose(turned, torch.eye(3).roll(1, 0), atol=1e-6)
    assert torch.allclose(hue_rotation(50) @ hue_rotation(70), turned, atol=1e-6)


def test_grey_stays() -> None:
    for degrees in (13.0, 77.0, -150.0):
        for saturation in (0.0, 0.6, 1.4):
            matrix = hue_rotation(degrees, saturation)
            assert torch.allclose(matrix @ torch.full((3,), 0.7), torch.full((3,), 0.7), atol=1e-6)
            assert torch.allclose(matrix.sum(dim=0), torch.ones(3), atol=1e-6)  # and brightness
    assert torch.allclose(hue_rotation(0, 0), torch.full((3, 3), 1 / 3), atol=1e-6)


def test_half_of_the_videos_change_and_all_frames_alike() -> None:
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8))
    video = picture.expand(-1, 4, -1, -1).contiguous()
    rng, changed = np.random.default_rng(1), 0
    for _ in range(200):
        other = augment_colors(video, rng)
        assert other.dtype == torch.uint8 and other.shape == video.shape
        assert (other == other[:, :1]).all()
        changed += not torch.equal(other, video)
    # 200 draws of a half: standard deviation 3.5 %; four of them.
    assert abs(changed / 200 - colors.PROBABILITY) < 0.14


def test_black_and_white_stay(monkeypatch) -> None:
    """Also under gamma."""
    monkeypatch.setattr(colors, "PROBABILITY", 1.0)
    ends = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 2)
    for seed in range(5):
        assert torch.equal(augment_colors(ends, np.random.default_rng(seed)), ends)
