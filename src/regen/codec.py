"""File to file: reconstruct, encode, decode. Chunk by chunk; memory does not grow with the length.

What the command line calls; models come in ready, files go out whole or not at all.
The `check_*` functions find what is wrong with the files before a model is loaded: they open all
that their partner opens, and leave no trace.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from regen.chunking import ChunkGeometry, DecodeChunk, check_latents
from regen.evaluation.metrics import psnr, ssim
from regen.evaluation.networks import Network, load_lpips
from regen.evaluation.sheets import comparison
from regen.latent_file import (
    LatentVideo,
    StorageDtype,
    check_writable,
    round_latents,
    write_latents,
)
from regen.loading import Autoencoder
from regen.model.autoencoder import AutoencoderREGEN
from regen.video import (
    Rehearsed,
    VideoInfo,
    VideoReader,
    VideoWriter,
    check_output,
    frames_to_video,
    has_sound,
    open_video,
    video_to_frames,
)

Item = TypeVar("Item")
Progress = Callable[[int], None]  # called with the number of frames just finished


@dataclass
class Report:
    """What happened to one file. PSNR in dB, SSIM, LPIPS (AlexNet): means over frames of 8-bit RGB.

    `num_frames` are those that the latents stand for, `num_decoded` those that were generated.
    `ssim` and `lpips` are NaN for pictures smaller than their windows; `lpips` is None where its
    weights are not installed.
    """

    height: int
    width: int
    num_frames: int = 0
    num_decoded: int = 0
    num_latent_frames: int = 0
    latent_values: int = 0
    elapsed_s: float = 0.0
    psnr_values: list[float] = field(default_factory=list)
    ssim_values: list[float] = field(default_factory=list)
    lpips_values: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what may not be expected of the input

    @property
    def psnr(self) -> float:
        return math.fsum(self.psnr_values) / len(self.psnr_values)

    @property
    def ssim(self) -> float:
        return math.fsum(self.ssim_values) / len(self.ssim_values)

    @property
    def lpips(self) -> float | None:
        values = self.lpips_values
        return math.fsum(values) / len(values) if values else None

    @property
    def frames_per_latent_frame(self) -> float:
        return self.num_frames / self.num_latent_frames

    @property
    def values_ratio(self) -> float:
        """Pixel values (RGB) per latent value."""
        return 3 * self.num_frames * self.height * self.width / self.latent_values

    @property
    def frames_per_s(self) -> float:
        return (self.num_decoded or self.num_frames) / self.elapsed_s

    def count(self, num_frames: int, latents: torch.Tensor) -> None:
        """Add a chunk: its frames, and its latents `[..., n, h, w]`."""
        self.num_frames += num_frames
        self.num_latent_frames += latents.shape[-3]
        self.latent_values += latents.numel()

    def measure(
        self, frames: np.ndarray, reconstruction: np.ndarray, lpips: Network | None
    ) -> None:
        """Add the metrics of a chunk, both uint8 `[n, H, W, 3]`."""
        source, other = frames_to_video(frames)[None], frames_to_video(reconstruction)[None]
        self.psnr_values += psnr(other, source)[0].tolist()
        self.ssim_values += ssim(other, source)[0].tolist()
        if lpips is not None:
            self.lpips_values += lpips.run(other, source)[0].tolist()


# -- chunks: frames <-> latents -------------------------------------------------------------------


def read_chunks(
    reader: VideoReader, chunk_length: int, short_side: int | None = None
) -> Iterator[tuple[np.ndarray, list[Fraction]]]:
    """(frames uint8 `[n, H, W, 3]`, times in s) of each chunk; n = `chunk_length` but for the last.

    `short_side` resizes so that the short side has this many pixels.
    """
    frames: list[np.ndarray] = []
    times: list[Fraction] = []
    for frame in reader:
        frames.append(frame.pixels)
        times.append(frame.time)
        if len(frames) == chunk_length:
            yield _resize(np.stack(frames), short_side), times
            frames, times = [], []
    if frames:
        yield _resize(np.stack(frames), short_side), times


@torch.inference_mode()
def encode_frames(model: Autoencoder, frames: np.ndarray) -> torch.Tensor:
    """uint8 `[n, H, W, 3]`, one chunk at most -> latents `[1, 8, 1 or 2, h, w]`."""
    video = frames_to_video(frames)[None].to(model.device)
    with fast_precision(model.device):
        return model.encode(video).latents


class FrameDecoder:
    """Latents of a video, chunk after chunk, to frames of `height` x `width`."""

    def __init__(
        self,
        model: Autoencoder,
        height: int,
        width: int,
        decode_chunk: DecodeChunk,
    ) -> None:
        self.model, self.height, self.width = model, height, width
        self.decode_chunk = decode_chunk

    @torch.inference_mode()
    def decode(
        self,
        index: int,
        latents: torch.Tensor,
        following: torch.Tensor | None,
        frame_times: Sequence[float],
    ) -> np.ndarray:
        """Chunk `index`, latents `[1, 8, n, h, w]`, at its own times: uint8 `[F, H, W, 3]`.

        `following`: the next chunk's latents, None where there is none.
        """
        device = self.model.device
        check_latents(latents, self.model.config["latent_channels"])
        with fast_precision(device):
            after = None if following is None else following.to(device)
            times = torch.tensor(frame_times, dtype=torch.float32)
            sample = self.decode_chunk(index, latents.to(device), after, times)
        return video_to_frames(sample[0, ..., : self.height, : self.width])


def fast_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the processor multiplies it."""
    is_fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=is_fast)


def with_next(items: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each item with the one after it; the last with None."""
    last: list[Item] = []
    for item in items:
        yield from ((one, item) for one in last)
        last = [item]
    yield from ((one, None) for one in last)


def _resize(frames: np.ndarray, short_side: int | None) -> np.ndarray:
    """`[n, H, W, 3]` to the size that `resized` says; bicubic, antialiased."""
    size = resized(frames.shape[1], frames.shape[2], short_side)
    if size == frames.shape[1:3]:
        return frames
    video = frames_to_video(frames).transpose(0, 1)
    video = F.interpolate(video, size, mode="bicubic", antialias=True)
    return video_to_frames(video.transpose(0, 1))


def resized(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) in pixels with that short side; None: as they are."""
    if short_side is None:
        return height, width
    scale = Fraction(short_side, min(height, width))
    return round(height * scale), round(width * scale)


# -- reconstruct ----------------------------------------------------------------------------------


def compare_path(output: Path) -> Path:
    """Where `--compare` writes: `out.mp4` -> `out.compare.mp4`, a folder `out` -> `out-compare`."""
    return output.with_name(f"{output.stem}{'.' if output.suffix else '-'}compare{output.suffix}")


def check_reconstruct(
    source: Path,
    output: Path,
    compare: bool = False,
    short_side: int | None = None,
    stream: int | None = None,
) -> VideoInfo:
    """What is known of `source`. ValueError for what `reconstruct_file` could not read or write."""
    info = open_video(source, stream).info
    with suppress(Rehearsed), _video_outputs(info, output, compare, short_side):
        raise Rehearsed
    return info


def reconstruct_file(
    model: Autoencoder,
    source: Path,
    output: Path,
    num_inference_steps: int = 1,
    seed: int = 0,
    compare: bool = False,
    short_side: int | None = None,
    storage: StorageDtype = "float32",
    progress: Progress | None = None,
    stream: int | None = None,
    skip_damaged: bool = False,
) -> Report:
    """Compress `source` and re-generate it as `output`, with its timing and sound.

    `storage` rounds the latents between, as a latent file would. `compare` also writes source,
    reconstruction and 4 x error side by side to `compare_path(output)`. `stream` and `skip_damaged`
    are those of `open_video`.
    Raises ValueError (one line) for what cannot be read or written; then nothing is left behind.
    """
    lpips = load_lpips("alex", device=str(model.device))
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    with open_video(source, stream, skip_damaged) as reader:
        height, width = resized(reader.info.height, reader.info.width, short_side)
        report = Report(height, width)
        with _video_outputs(reader.info, output, compare, short_side) as writers:
            decode_chunk = model.chunk_decoder(num_inference_steps, generator)
            decoder = FrameDecoder(model, height, width, decode_chunk)
            chunks = read_chunks(reader, model.geometry.chunk_length, short_side)
            encoded = (
                (frames, times, round_latents(encode_frames(model, frames)[0], storage)[None])
                for frames, times in chunks
            )
            for index, ((frames, times, latents), after) in enumerate(with_next(encoded)):
                following = None if after is None else after[2]
                reconstruction = decoder.decode(index, latents, following, range(len(frames)))
                report.count(len(frames), latents)
                report.measure(frames, reconstruction, lpips)
                report.num_decoded += len(frames)
                _write(writers[0], reconstruction, times)
                if compare:
                    _write(writers[1], comparison(frames, reconstruction), times)
                if progress:
                    progress(len(frames))
            for writer in writers:
                writer.end = reader.end
        report.notes = [*reader.notes, *writers[0].notes]
    report.elapsed_s = time.perf_counter() - start
    return report


@contextmanager
def _video_outputs(
    info: VideoInfo, output: Path, compare: bool, short_side: int | None
) -> Iterator[list[VideoWriter]]:
    """The writers of one reconstruction: opened at once, finished together or not at all."""
    height, width = resized(info.height, info.width, short_side)
    widths = {output: width} | ({compare_path(output): 3 * width} if compare else {})
    for path in widths:
        check_output(info.path, path)
        _check_png(path, lambda: _has_many_frames(info))
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                VideoWriter(
                    path,
                    width=written_width,
                    height=height,
                    frame_rate=info.frame_rate,
                    sample_aspect_ratio=info.sample_aspect_ratio,
                    audio_from=info.path if info.has_audio else None,
                    time_base=info.time_base,
                )
            )
            for path, written_width in widths.items()
        ]
        yield writers
        for writer in writers:  # before the first of them is given its name
            writer.finish()


def _write(writer: VideoWriter, frames: np.ndarray, times: Sequence[Fraction]) -> None:
    for picture, timestamp in zip(frames, times, strict=True):
        writer.write(picture, timestamp)


# -- encode ---------------------------------------------------------------------------------------


def check_encode(source: Path, output: Path, stream: int | None = None) -> VideoInfo:
    """What is known of `source`. ValueError for what `encode_file` could not read or write."""
    info = open_video(source, stream).info
    check_output(source, output)
    check_writable(output)
    return info


def encode_file(
    model: Autoencoder,
    source: Path,
    output: Path,
    storage: StorageDtype = "bfloat16",
    short_side: int | None = None,
    progress: Progress | None = None,
    stream: int | None = None,
    skip_damaged: bool = False,
) -> Report:
    """Compress `source` to the latent file `output`.

    Holds the latents in memory, 1/24 of the pixels' values or less, and one chunk of the frames.
    Raises ValueError (one line) for what cannot be read or written; then nothing is left behind.
    """
    model = _with_latent_files(model)
    start, info = time.perf_counter(), check_encode(source, output, stream)
    report = Report(*resized(info.height, info.width, short_side))
    latents: list[torch.Tensor] = []
    times: list[Fraction] = []
    with open_video(source, stream, skip_damaged) as reader:
        for frames, chunk_times in read_chunks(reader, model.geometry.chunk_length, short_side):
            latents.append(encode_frames(model, frames)[0].cpu())
            times += chunk_times
            report.count(len(frames), latents[-1])
            if progress:
                progress(len(frames))
    report.notes = reader.notes
    video = LatentVideo(
        latents=torch.cat(latents, dim=1),
        times=times,
        height=report.height,
        width=report.width,
        frame_rate=info.frame_rate,
        time_base=info.time_base,
        sample_aspect_ratio=info.sample_aspect_ratio,
        temporal_compression_ratio=model.temporal_compression_ratio,
        spatial_compression_ratio=model.spatial_compression_ratio,
        latents_mean=model.latents_mean,
        latents_std=model.latents_std,
        encoder_id=model.encoder_id(),
        storage=storage,
        end=reader.end,
    )
    write_latents(output, video)
    report.elapsed_s = time.perf_counter() - start
    return report


# -- decode ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameGrid:
    """Which timestamps of a video are generated: every `every`-th frame, or `multiplier` per frame.

    Raises ValueError where a number is below 1, or both are above.
    """

    every: int = 1
    multiplier: int = 1

    def __post_init__(self) -> None:
        if min(self.every, self.multiplier) < 1:
            raise ValueError(f"got every {self.every}, multiplier {self.multiplier}; at least 1")
        if self.every > 1 and self.multiplier > 1:
            raise ValueError("every and multiplier exclude each other: give one of them")

    @property
    def step(self) -> Fraction:
        """Frames of the source from one generated frame to the next."""
        return Fraction(self.every, self.multiplier)

    def num_frames(self, num_frames: int) -> int:
        """How many are generated of a video of `num_frames`."""
        return int((num_frames - 1) / self.step) + 1

    def chunk(self, index: int, num_frames: int, geometry: ChunkGeometry) -> list[Fraction]:
        """The generated timestamps that belong to chunk `index`, in frames from the video's start.

        As `ChunkGeometry.locate` says, a timestamp between two chunks belongs to the nearer one.
        """
        length, half = geometry.chunk_length, Fraction(1, 2)
        is_last = (index + 1) * length >= num_frames
        first = max(0, math.ceil((index * length - half) / self.step))
        end = math.ceil(((index + 1) * length - half) / self.step)
        stop = self.num_frames(num_frames) if is_last else min(end, self.num_frames(num_frames))
        return [number * self.step for number in range(first, stop)]


def check_decode(
    source: Path,
    video: LatentVideo,
    output: Path,
    audio_from: Path | None = None,
    grid: FrameGrid | None = None,
) -> None:
    """ValueError for what `decode_file` could not read or write; `video` was read from `source`."""
    check_output(source, output)
    with suppress(Rehearsed), _decoded_output(video, output, audio_from, grid or FrameGrid()):
        raise Rehearsed


def decode_file(
    model: Autoencoder,
    video: LatentVideo,
    output: Path,
    num_inference_steps: int = 1,
    seed: int = 0,
    audio_from: Path | None = None,
    progress: Progress | None = None,
    grid: FrameGrid | None = None,
) -> Report:
    """Re-generate `output` from a latent file's content, at the frames or between, as `grid` says.

    Raises ValueError where another encoder made the latents, and for what cannot be written.
    """
    model = _with_latent_files(model)
    if video.encoder_id != model.encoder_id():
        raise ValueError(
            f"these latents were made by encoder {video.encoder_id}, this model's is "
            f"{model.encoder_id()}: decode with the model that encoded them (--model)"
        )
    grid = grid or FrameGrid()
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    report = Report(video.height, video.width)
    ratio = video.temporal_compression_ratio
    geometry = model.geometry_at(ratio)
    with _decoded_output(video, output, audio_from, grid) as writer:
        decode_chunk = model.chunk_decoder(num_inference_steps, generator, ratio)
        decoder = FrameDecoder(model, video.height, video.width, decode_chunk)
        for index, size in enumerate(geometry.chunk_sizes(video.num_frames)):
            latents = video.latents[None, :, 2 * index : 2 * index + 2]
            report.count(size, latents)
            timestamps = grid.chunk(index, video.num_frames, geometry)
            following = video.latents[None, :, 2 * index + 2 : 2 * index + 3]
            # As many together as in a chunk: what the model does, and memory stays bounded.
            for offset in range(0, len(timestamps), geometry.chunk_length):
                group = timestamps[offset : offset + geometry.chunk_length]
                times = [float(timestamp - index * geometry.chunk_length) for timestamp in group]
                frames = decoder.decode(index, latents, following, times)
                _write(writer, frames, [_time_at(video.times, timestamp) for timestamp in group])
                report.num_decoded += len(group)
                if progress:
                    progress(len(group))
        writer.end = video.duration
    report.notes = writer.notes
    report.elapsed_s = time.perf_counter() - start
    return report


@contextmanager
def _decoded_output(
    video: LatentVideo, output: Path, audio_from: Path | None, grid: FrameGrid
) -> Iterator[VideoWriter]:
    if audio_from is not None:
        check_output(audio_from, output)
        _check_sound(audio_from)
    _check_png(output, lambda: grid.num_frames(video.num_frames) > 1)
    with VideoWriter(
        output,
        width=video.width,
        height=video.height,
        frame_rate=video.frame_rate / grid.step,
        sample_aspect_ratio=video.sample_aspect_ratio,
        audio_from=audio_from,
        time_base=video.time_base / grid.multiplier,
    ) as writer:
        yield writer


def _time_at(times: Sequence[Fraction], timestamp: Fraction) -> Fraction:
    """Seconds at `timestamp` (in frames): between two frames, in proportion."""
    before, rest = int(timestamp), timestamp % 1
    if rest == 0:
        return times[before]
    return times[before] + rest * (times[before + 1] - times[before])


# -- checks ---------------------------------------------------------------------------------------


def _with_latent_files(model: Autoencoder) -> AutoencoderREGEN:
    if not isinstance(model, AutoencoderREGEN):
        raise ValueError(
            f"latent files hold latents of AutoencoderREGEN, this is {type(model).__name__}: "
            "regen reconstruct takes it"
        )
    return model


def _check_png(path: Path, has_many_frames: Callable[[], bool]) -> None:
    if path.suffix.lower() == ".png" and has_many_frames():
        raise ValueError(
            f"{path}: a .png holds one frame; the output must end in .mp4, or have no suffix "
            "(a folder of PNGs)"
        )


def _has_many_frames(info: VideoInfo) -> bool:
    if info.num_frames is not None:
        return info.num_frames > 1
    with open_video(info.path) as reader:
        return len(list(islice(reader, 2))) > 1


def _check_sound(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file to take the sound from")
    if not has_sound(path):
        raise ValueError(f"{path}: has no sound; give another file, or leave --audio out")
