"""How a video of any length is cut into chunks of k + 1 frames; pure arithmetic.

Every chunk of REGEN becomes two latent frames (content, motion); one of MAGVIT-v2 may become more.
Choice: a last chunk of one frame is an image and becomes one latent frame (content); one of 2 to k
frames is filled up by repeating its last frame and decoded at its true times only. So a video of
any length has latents.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ChunkGeometry:
    """Frames <-> latent frames for a temporal compression ratio k.

    The first frame of a chunk is one latent frame, each k that follow are one more.
    """

    temporal_compression_ratio: int
    latent_frames_per_chunk: int = 2

    @property
    def chunk_length(self) -> int:
        return (self.latent_frames_per_chunk - 1) * self.temporal_compression_ratio + 1

    def latent_frames_of(self, chunk_size: int) -> int:
        """Latent frames of a chunk of `chunk_size` frames, which need not be full."""
        return 1 + math.ceil((chunk_size - 1) / self.temporal_compression_ratio)

    def chunk_sizes(self, num_frames: int) -> list[int]:
        """Frames in each chunk: `[k + 1, ..., k + 1, rest]`."""
        if num_frames < 1:
            raise ValueError(f"a video needs at least 1 frame, got {num_frames}")
        full, rest = divmod(num_frames, self.chunk_length)
        return [self.chunk_length] * full + ([rest] if rest else [])

    def num_latent_frames(self, num_frames: int) -> int:
        return sum(self.latent_frames_of(size) for size in self.chunk_sizes(num_frames))

    def max_num_frames(self, num_latent_frames: int) -> int:
        """The most frames that many latent frames stand for."""
        if num_latent_frames < 1:
            raise ValueError(f"expected at least 1 latent frame, got {num_latent_frames}")
        full, rest = divmod(num_latent_frames, self.latent_frames_per_chunk)
        last = (rest - 1) * self.temporal_compression_ratio + 1 if rest else 0
        return full * self.chunk_length + last

    def check_num_frames(self, num_frames: int, num_latent_frames: int) -> None:
        expected = self.num_latent_frames(num_frames)
        if expected != num_latent_frames:
            raise ValueError(
                f"{num_frames} frames take {expected} latent frames at ratio "
                f"{self.temporal_compression_ratio}, got {num_latent_frames}: "
                "give the num_frames that was encoded "
                f"(at most {self.max_num_frames(num_latent_frames)})"
            )

    def locate(
        self, frame_times: torch.Tensor, num_latent_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Times of the whole video, in frames -> (chunk index, time within that chunk); `[F]` each.

        A time between two chunks goes to the nearer one; times before the first or after the last
        extrapolate from it.
        """
        num_chunks = math.ceil(num_latent_frames / self.latent_frames_per_chunk)
        chunk = torch.floor((frame_times + 0.5) / self.chunk_length).clamp(0, num_chunks - 1).long()
        return chunk, frame_times - chunk * self.chunk_length


def stretch(chunk: torch.Tensor, num_frames: int) -> torch.Tensor:
    """`chunk` `[B, C, n, H, W]` as `num_frames` frames in the same time, those between blended.

    One frame, an image, stays one.
    """
    size = chunk.shape[2]
    if size in (1, num_frames):
        return chunk
    times = torch.linspace(0, size - 1, num_frames, device=chunk.device)
    frames = torch.arange(size, device=chunk.device)
    weights = (1 - (times[:, None] - frames).abs()).clamp_min(0).to(chunk.dtype)  # [num_frames, n]
    with torch.autocast(chunk.device.type, enabled=False):
        return (weights @ chunk.flatten(3)).unflatten(3, chunk.shape[3:])
