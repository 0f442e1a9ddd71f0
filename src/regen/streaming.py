"""Frames in, latents out, and back, as they come: the state of a stream is one object.

What files go through, too. Nothing is kept but the chunk under way; streams do not share anything,
and the result does not depend on the portions in which the frames come.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

import numpy as np
import torch

from regen.chunking import ChunkGeometry, ChunkSize, check_latents, encode_by_chunk
from regen.loading import Autoencoder
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.chunk_lengths import ChunkLengths
from regen.video import frames_to_video, video_to_frames

# Choice: FFmpeg's detector of scene changes (scdet) and its threshold, in percent of the range of
# brightness, with the other side of a flash, which it leaves out. On the 33 clips of eval_public,
# joined, with a flash in every fourth: all 32 cuts, all 18 sides of flashes, 2 frames of neither.
CUT_THRESHOLD = 10.0


@dataclass(frozen=True)
class EncodedChunk:
    """`latents` `[8, 1 or 2, h, w]`, float32, normalised; the frames that they stand for."""

    latents: torch.Tensor
    size: ChunkSize


def fast_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the processor multiplies it."""
    is_fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=is_fast)


@torch.inference_mode()
def encode_frames(model: Autoencoder, frames: np.ndarray) -> torch.Tensor:
    """uint8 `[n, H, W, 3]`, one chunk at most -> latents `[1, 8, 1 or 2, h, w]`."""
    video = frames_to_video(frames)[None].to(model.device)
    with fast_precision(model.device):
        return model.encode(video).latents


class CutDetector:
    """Says of the frames of one video in turn whether another scene starts there."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._change: float | None = None  # to the frame before, in percent
        self._was_cut = False

    def is_cut(self, pixels: np.ndarray) -> bool:
        """Whether uint8 `[H, W, 3]` starts a scene, is a flash, or the first frame after it."""
        before, self._before = self._before, pixels
        if before is None:
            return False
        difference = np.maximum(pixels, before) - np.minimum(pixels, before)
        change, last = float(difference.mean()) / 2.56, self._change
        # Motion goes on, a cut does not: what counts is how much more it is than the last change.
        # So the frame after a flash, which changes as much as the flash did, does not count alone,
        # and of the second frame of all nothing can be said.
        is_cut = last is not None and min(change, abs(change - last)) >= CUT_THRESHOLD
        was_cut, self._was_cut, self._change = self._was_cut, is_cut, change
        return is_cut or (was_cut and change >= CUT_THRESHOLD)


class StreamEncoder:
    """Frames of one video, in portions of any size, to chunks of latents.

    A chunk starts where a scene does, and on both sides of a flash. `quality` None: chunks of
    `model.geometry`; else from 0 to 100: of the length that the content asks for, up to the
    longest that the model knows, see `ChunkLengths`. Raises ValueError for a model that knows one
    length alone.
    """

    def __init__(self, model: Autoencoder, quality: float | None = None) -> None:
        self.model = model
        self._cuts = CutDetector()
        self._frames: list[np.ndarray] = []
        self._shape: tuple[int, ...] = ()
        self._longest = model.geometry.chunk_length
        self._lengths: ChunkLengths | None = None
        if quality is not None:
            if not isinstance(model, AutoencoderREGEN):
                raise ValueError(f"quality is of AutoencoderREGEN, this is {type(model).__name__}")
            self._lengths = ChunkLengths(model, quality)
            self._longest = self._lengths.lengths[-1]

    def push(self, frames: np.ndarray) -> list[EncodedChunk]:
        """Add frames, uint8 `[n, H, W, 3]`: the chunks that are complete with them.

        Raises ValueError for frames of another type, or of another size than those before.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(
                f"frames are uint8 [n, H, W, 3], got {frames.dtype} {list(frames.shape)}"
            )
        self._shape = self._shape or frames.shape[1:]
        if frames.shape[1:] != self._shape:
            raise ValueError(
                f"frames of one stream are of one size, got {list(frames.shape[1:3])} after "
                f"{list(self._shape[:2])}: start another stream"
            )
        chunks: list[EncodedChunk] = []
        for pixels in frames:
            if self._cuts.is_cut(pixels):
                chunks += self.finish()
            self._frames.append(pixels)
            if len(self._frames) == self._longest:
                chunks.append(self._next_chunk())
        return chunks

    def finish(self) -> list[EncodedChunk]:
        """The chunks of all frames that are left: the video, or its scene, has ended."""
        chunks: list[EncodedChunk] = []
        while self._frames:
            chunks.append(self._next_chunk())
        return chunks

    def _next_chunk(self) -> EncodedChunk:
        if self._lengths is None:
            size = ChunkSize(len(self._frames), self.model.temporal_compression_ratio)
            latents = encode_frames(self.model, np.stack(self._frames))
        else:
            size, latents = self._chosen(self._lengths)
        self._frames = self._frames[size.num_frames :]
        return EncodedChunk(latents[0], size)

    @torch.inference_mode()
    def _chosen(self, lengths: ChunkLengths) -> tuple[ChunkSize, torch.Tensor]:
        model, device = lengths.model, lengths.model.device
        video = frames_to_video(np.stack(self._frames))[None].to(device)
        with fast_precision(device):
            num_frames, motion = lengths.choose(video)
            size = ChunkSize(num_frames, max(1, num_frames - 1))
            raw = encode_by_chunk(
                video[:, :, :num_frames],
                ChunkGeometry(size.ratio),
                lambda chunk: model.encode_chunk(chunk.to(model.dtype), motion),
            )
            return size, model.normalize_latents(raw)


class StreamDecoder:
    """Chunks of latents of one video, in turn, to frames of `height` x `width`.

    `frame_times`: which frames, as increasing times in frames from the start of the video; None:
    each once. A time between two chunks goes to the nearer one, what is left at the end to the
    last. `num_inference_steps` and `generator` are those of `decode`.
    """

    def __init__(
        self,
        model: Autoencoder,
        height: int,
        width: int,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        frame_times: Iterable[Fraction | float] | None = None,
    ) -> None:
        self.model, self.height, self.width = model, height, width
        self._decode_chunk = model.chunk_decoder(num_inference_steps, generator)
        self._is_all = frame_times is None
        self._times = iter(count() if frame_times is None else frame_times)
        self._time = next(self._times, None)
        self._index, self._start = -1, 0  # of the chunk that came last, and of its first frame
        self._chunk: EncodedChunk | None = None

    def push(self, chunk: EncodedChunk) -> Iterator[np.ndarray]:
        """Add a chunk: the frames that are known with it, uint8 `[F, H, W, 3]`, some at a time.

        A first frame is known at once; with moving content the others are when the next chunk is.
        Iterate to the end before the next one comes: frames are decoded as they are asked for.
        Raises ValueError for latents that cannot be decoded.
        """
        check_latents(chunk.latents[None], self.model.config["latent_channels"])
        if self._chunk is not None:
            yield from self._decode(self._end, chunk.latents[None, :, :1])
            self._start += self._chunk.size.num_frames
        self._index, self._chunk = self._index + 1, chunk
        if not self.model.sees_next_chunk:
            yield from self._decode(self._end, None)
        elif self._time == self._start:
            yield self._decode_group([self._take()], None)

    def finish(self) -> Iterator[np.ndarray]:
        """The frames that are left: no other chunk comes."""
        if self._chunk is not None:
            is_open = not self._is_all
            yield from self._decode(float("inf") if is_open else self._end, None)

    @property
    def _end(self) -> float:
        """Times below are of the chunk that came last, and not of one that follows it."""
        assert self._chunk is not None
        return self._start + self._chunk.size.num_frames - 0.5

    def _take(self) -> float | Fraction:
        assert self._time is not None
        taken, self._time = self._time, next(self._times, None)
        return taken

    def _decode(self, end: float, following: torch.Tensor | None) -> Iterator[np.ndarray]:
        """As many together as in a full chunk: what the model does, and memory stays bounded."""
        assert self._chunk is not None
        most = max(self.model.geometry.chunk_length, self._chunk.size.ratio + 1)
        while self._time is not None and self._time < end:
            group = [self._take()]
            while len(group) < most and self._time is not None and self._time < end:
                group.append(self._take())
            yield self._decode_group(group, following)

    @torch.inference_mode()
    def _decode_group(
        self, group: list[Fraction | float], following: torch.Tensor | None
    ) -> np.ndarray:
        assert self._chunk is not None
        device, latents = self.model.device, self._chunk.latents[None]
        times = torch.tensor([float(one - self._start) for one in group], dtype=torch.float32)
        with fast_precision(device):
            sample = self._decode_chunk(
                self._index,
                latents.to(device),
                None if following is None else following.to(device),
                times,
                self._chunk.size.ratio,
            )
        return video_to_frames(sample[0, ..., : self.height, : self.width])


def encode_stream(
    model: Autoencoder, frames: Iterable[np.ndarray], quality: float | None = None
) -> Iterator[EncodedChunk]:
    """Frames uint8 `[H, W, 3]`, one after another, to chunks; see `StreamEncoder`."""
    encoder = StreamEncoder(model, quality)
    for pixels in frames:
        yield from encoder.push(pixels[None])
    yield from encoder.finish()


def decode_stream(
    model: Autoencoder,
    chunks: Iterable[EncodedChunk],
    height: int,
    width: int,
    num_inference_steps: int = 1,
    generator: torch.Generator | None = None,
    frame_times: Iterable[Fraction | float] | None = None,
) -> Iterator[np.ndarray]:
    """Chunks to frames uint8 `[H, W, 3]`, one after another; see `StreamDecoder`."""
    decoder = StreamDecoder(model, height, width, num_inference_steps, generator, frame_times)
    for chunk in chunks:
        for frames in decoder.push(chunk):
            yield from frames
    for frames in decoder.finish():
        yield from frames
