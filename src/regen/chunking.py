"""Videos in chunks of k + 1 frames: the arithmetic, and encoding and decoding chunk by chunk.

Every chunk of REGEN becomes two latent frames (content, motion); one of MAGVIT-v2 may become more.
Choice: a last chunk of one frame is an image and becomes one latent frame (content); one of 2 to k
frames is filled up by repeating its last frame and decoded at its true times only. So a video of
any length has latents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

PATCH = 8  # pixels; the spatial compression ratio of every model


class DecodeChunk(Protocol):
    """(chunk index, its latents, the next one's, times within the chunk `[F]`) -> video."""

    def __call__(
        self,
        index: int,
        latents: torch.Tensor,
        following: torch.Tensor | None,
        frame_times: torch.Tensor,
        ratio: int | None = None,
        /,
    ) -> torch.Tensor: ...


class ChunkSize(NamedTuple):
    """`num_frames` of the video, encoded `ratio` times in time: 1 to `ratio` + 1 of them."""

    num_frames: int
    ratio: int

    @property
    def num_latent_frames(self) -> int:
        return ChunkGeometry(self.ratio).latent_frames_of(self.num_frames)


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


def encode_by_chunk(
    video: torch.Tensor,
    geometry: ChunkGeometry,
    encode_chunk: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Latents float32 `[B, C, n, h, w]` of `video` `[B, 3, T, H, W]` in [-1, 1], of any size.

    `encode_chunk` gets whole patches and whole latent frames: edges and the last frame are
    repeated. Raises ValueError for another shape or range.
    """
    check_video(video)
    height, width = video.shape[-2:]
    latents = []
    for chunk in video.split(geometry.chunk_length, dim=2):
        num_repeats = (1 - chunk.shape[2]) % geometry.temporal_compression_ratio
        padding = (0, -width % PATCH, 0, -height % PATCH, 0, num_repeats)
        latents.append(encode_chunk(F.pad(chunk, padding, mode="replicate")).float())
    return torch.cat(latents, dim=2)


def decode_by_chunk(
    latents: torch.Tensor,
    frame_times: torch.Tensor,
    geometry: ChunkGeometry,
    decode_chunk: DecodeChunk,
    height: int,
    width: int,
) -> torch.Tensor:
    """Video `[B, 3, F, height, width]`, float32, at `frame_times` `[F]` of the whole video."""
    shape = (latents.shape[0], 3, len(frame_times), height, width)
    video = latents.new_empty(shape, dtype=torch.float32)
    chunk_index, local_times = geometry.locate(frame_times, latents.shape[2])
    size = geometry.latent_frames_per_chunk
    for index in chunk_index.unique().tolist():
        chunk = latents[:, :, size * index : size * (index + 1)]
        following = latents[:, :, size * (index + 1) : size * (index + 2)]
        wanted = (chunk_index == index).nonzero()[:, 0]
        # Choice: at most k + 1 frames are generated together; more times make more groups. The
        # cost of attention grows with the square of their number.
        for group in wanted.split(geometry.chunk_length):
            sample = decode_chunk(index, chunk, following, local_times[group])
            video[:, :, group.to(video.device)] = sample[..., :height, :width]
    return video


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


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return frames.float().div_(127.5).sub_(1)


def check_video(video: torch.Tensor) -> None:
    """ValueError unless `video` is float `[B, 3, T, H, W]`, finite, in [-1, 1] (1.5 passes)."""
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(
            f"a video is [B, 3, T, H, W] with every size at least 1, got {list(video.shape)}"
        )
    if not video.is_floating_point():
        raise ValueError(
            f"a video is float in [-1, 1], got {video.dtype}: uint8 frames / 127.5 - 1"
        )
    largest = video.abs().max().item()
    if not largest <= 1.5:
        raise ValueError(
            f"a video is in [-1, 1], got values up to {largest:g}: 0-255 frames / 127.5 - 1"
        )


def check_latents(
    latents: torch.Tensor, channels: int, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Height and width, where not given, of the video of `latents` `[B, channels, n, h, w]`.

    Raises ValueError for another shape, for values that are not finite, and for a size that these
    latents are not of.
    """
    if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
        raise ValueError(f"latents are [B, {channels}, n, h, w], got {list(latents.shape)}")
    if not torch.isfinite(latents).all():
        raise ValueError(
            "latents hold values that are not finite: they are damaged, encode the video again"
        )
    rows, columns = latents.shape[-2:]
    height, width = height or PATCH * rows, width or PATCH * columns
    if (-(-height // PATCH), -(-width // PATCH)) != (rows, columns):
        raise ValueError(
            f"latents of {rows} x {columns} are a video of up to {PATCH * rows} x "
            f"{PATCH * columns} pixels, got height {height}, width {width}"
        )
    return height, width


def check_times(
    geometry: ChunkGeometry,
    num_latent_frames: int,
    num_frames: int | None,
    frame_times: torch.Tensor | Sequence[float] | None,
) -> torch.Tensor:
    """The times to decode, `[F]`: those given, or those of `num_frames` frames (default: all).

    Raises ValueError for both at once, for times that are not numbers, and for a wrong num_frames.
    """
    if frame_times is None:
        if num_frames is None:
            num_frames = geometry.max_num_frames(num_latent_frames)
        geometry.check_num_frames(num_frames, num_latent_frames)
        return torch.arange(num_frames, dtype=torch.float32)
    if num_frames is not None:
        raise ValueError("give num_frames or frame_times, not both")
    times = torch.as_tensor(frame_times, dtype=torch.float32).cpu()
    if times.ndim != 1 or len(times) == 0:
        raise ValueError(
            f"frame_times are a list of at least one time, got shape {list(times.shape)}"
        )
    if not torch.isfinite(times).all():
        raise ValueError(
            "frame_times must be finite numbers, in frames from the start of the video"
        )
    return times
