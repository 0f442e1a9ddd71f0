"""Frames <-> latent frames: nothing is lost, invented or assigned to the wrong chunk."""

import pytest
import torch

from regen.chunking import ChunkGeometry


@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
def test_every_length_is_covered_once(ratio: int) -> None:
    geometry = ChunkGeometry(ratio)
    for num_frames in range(1, 3 * (ratio + 1) + 1):
        sizes = geometry.chunk_sizes(num_frames)
        assert sum(sizes) == num_frames
        assert all(size == ratio + 1 for size in sizes[:-1]) and 1 <= sizes[-1] <= ratio + 1
        num_latents = geometry.num_latent_frames(num_frames)
        assert num_latents == 2 * len(sizes) - (sizes[-1] == 1)
        assert geometry.max_num_frames(num_latents) >= num_frames
        geometry.check_num_frames(num_frames, num_latents)


def test_an_image_is_one_latent_frame_and_132_frames_are_eight_at_32x() -> None:
    assert ChunkGeometry(8).num_latent_frames(1) == 1
    assert ChunkGeometry(32).num_latent_frames(132) == 8


def test_a_wrong_number_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="20 frames take 6 latent frames"):
        ChunkGeometry(8).check_num_frames(20, 4)
    with pytest.raises(ValueError, match="at least 1 frame"):
        ChunkGeometry(8).chunk_sizes(0)


def test_times_go_to_the_nearer_chunk() -> None:
    times = torch.tensor([-3.0, 0.0, 8.0, 8.4, 8.6, 9.0, 17.0, 40.0])
    chunk, local = ChunkGeometry(8).locate(times, num_latent_frames=4)
    assert chunk.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.allclose(
        local, torch.tensor([-3.0, 0.0, 8.0, 8.4, -0.4, 0.0, 8.0, 31.0]), atol=1e-5
    )
