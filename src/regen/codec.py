"""File to file: reconstruct, encode, decode. Chunk by chunk; memory does not grow with the length.

What the command line calls; models come in ready, files go out whole or not at all.
The `check_*` functions find what is wrong with the files before a model is loaded: they open all
that their partner opens, and leave no trace.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from regen.chunking import ChunkSize
from regen.evaluation.metrics import psnr, ssim
from regen.evaluation.networks import Network, load_lpips
from regen.evaluation.sheets import comparison
from regen.latent_file import (
    LatentVideo,
    StorageDtype,
    check_writable,
    joined,
    latents_to_bytes,
    round_latents,
    write_latents,
)
from regen.loading import Autoencoder
from regen.model.autoencoder import AutoencoderREGEN
from regen.streaming import EncodedChunk, StreamDecoder, encode_stream
from regen.video import (
    PIPE,
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
    chunk_lengths: list[int] = field(default_factory=list)  # in frames
    ratio: int = 0  # in time, the highest
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

    def count(self, size: ChunkSize, latents: torch.Tensor) -> None:
        """Add a chunk and its latents `[..., n, h, w]`."""
        self.num_frames += size.num_frames
        self.chunk_lengths.append(size.num_frames)
        self.ratio = max(self.ratio, size.ratio)
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


def _resize(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """`[H, W, 3]` to the size that `resized` says; bicubic, antialiased."""
    size = resized(pixels.shape[0], pixels.shape[1], short_side)
    if size == pixels.shape[:2]:
        return pixels
    video = frames_to_video(pixels[None]).transpose(0, 1)
    video = F.interpolate(video, size, mode="bicubic", antialias=True)
    return video_to_frames(video.transpose(0, 1))[0]


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
    quality: float | None = None,
) -> Report:
    """Compress `source` and re-generate it as `output`, with its timing and sound.

    `storage` rounds the latents between, as a latent file would. `compare` also writes source,
    reconstruction and 4 x error side by side to `compare_path(output)`. `stream` and `skip_damaged`
    are those of `open_video`, `quality` is that of `StreamEncoder`.
    Raises ValueError (one line) for what cannot be read or written; then nothing is left behind.
    """
    lpips = load_lpips("alex", device=str(model.device))
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    with open_video(source, stream, skip_damaged) as reader:
        height, width = resized(reader.info.height, reader.info.width, short_side)
        report = Report(height, width)
        with _video_outputs(reader.info, output, compare, short_side) as writers:
            waiting: deque[tuple[np.ndarray, Fraction]] = deque()  # source frames, their times

            def take(reconstruction: np.ndarray) -> None:
                taken = [waiting.popleft() for _ in reconstruction]
                frames, times = np.stack([pixels for pixels, _ in taken]), [one for _, one in taken]
                report.measure(frames, reconstruction, lpips)
                report.num_decoded += len(frames)
                _write(writers[0], reconstruction, times)
                if compare:
                    _write(writers[1], comparison(frames, reconstruction), times)
                if progress:
                    progress(len(frames))

            def source_frames() -> Iterator[np.ndarray]:
                for frame in reader:
                    waiting.append((_resize(frame.pixels, short_side), frame.time))
                    yield waiting[-1][0]

            decoder = StreamDecoder(model, height, width, num_inference_steps, generator)
            for chunk in encode_stream(model, source_frames(), quality):
                latents = round_latents(chunk.latents, storage)
                report.count(chunk.size, latents)
                for frames in decoder.push(EncodedChunk(latents, chunk.size)):
                    take(frames)
            for frames in decoder.finish():
                take(frames)
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


def check_encode(reader: VideoReader, output: Path) -> None:
    """ValueError for what `encode_file` could not write."""
    if output == PIPE:
        return
    check_output(reader.info.path, output)
    check_writable(output)


def encode_file(
    model: Autoencoder,
    source: Path | VideoReader,
    output: Path,
    storage: StorageDtype = "bfloat16",
    short_side: int | None = None,
    progress: Progress | None = None,
    quality: float | None = None,
) -> Report:
    """Compress `source` to the latent file `output`; "-": into standard output, chunk by chunk.

    `quality` is that of `StreamEncoder`. For a file the latents are held in memory, 1/24 of the
    pixels' values or less. Raises ValueError (one line) for what cannot be read or written; then
    nothing is left behind.
    """
    model = _with_latent_files(model)
    start, encoder_id = time.perf_counter(), model.encoder_id()
    reader = source if isinstance(source, VideoReader) else open_video(source)
    check_encode(reader, output)
    info = reader.info
    report = Report(*resized(info.height, info.width, short_side))
    chunks: list[EncodedChunk] = []
    times: list[Fraction] = []

    def take() -> LatentVideo:
        """The chunks and times since the last call, as a video or a part of one."""
        sizes = tuple(chunk.size for chunk in chunks)
        num_frames = sum(size.num_frames for size in sizes)
        video = LatentVideo(
            latents=torch.cat([chunk.latents for chunk in chunks], dim=1),
            times=times[:num_frames],
            height=report.height,
            width=report.width,
            frame_rate=info.frame_rate,
            time_base=info.time_base,
            sample_aspect_ratio=info.sample_aspect_ratio,
            temporal_compression_ratio=max(size.ratio for size in sizes),
            spatial_compression_ratio=model.spatial_compression_ratio,
            latents_mean=model.latents_mean,
            latents_std=model.latents_std,
            encoder_id=encoder_id,
            storage=storage,
            end=reader.end,
            sizes=sizes,
        )
        del times[:num_frames], chunks[:]
        return video

    def source_frames() -> Iterator[np.ndarray]:
        for frame in reader:
            times.append(frame.time)
            yield _resize(frame.pixels, short_side)

    with reader:
        for chunk in encode_stream(model, source_frames(), quality):
            chunks.append(EncodedChunk(chunk.latents.cpu(), chunk.size))
            report.count(chunk.size, chunk.latents)
            if output == PIPE:
                sys.stdout.buffer.write(latents_to_bytes(take()))
                sys.stdout.buffer.flush()
            if progress:
                progress(chunk.size.num_frames)
    report.notes = reader.notes
    if output != PIPE:
        write_latents(output, take())
    report.elapsed_s = time.perf_counter() - start
    return report


# -- decode ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameGrid:
    """Which frames of a video are generated, and when each is shown.

    `every`-th frames, or `multiplier` per frame, at the times of the source; or, with `frame_rate`
    (frames/s) or a `slow_motion` other than 1, at a constant rate: by default the source's, in a
    video `slow_motion` times as long. `frames_before` and `frames_after` are as many of the
    source's rate before its first and after its last. Raises ValueError for numbers out of range,
    and for more than one of `every`, `multiplier` and a constant rate.
    """

    every: int = 1
    multiplier: int = 1
    frame_rate: Fraction | None = None
    slow_motion: Fraction = Fraction(1)
    frames_before: int = 0
    frames_after: int = 0

    def __post_init__(self) -> None:
        at_least = {"every": 1, "multiplier": 1, "frames_before": 0, "frames_after": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, got {getattr(self, name)}")
        if self.slow_motion <= 0 or (self.frame_rate is not None and self.frame_rate <= 0):
            raise ValueError(
                f"frame rate and slow motion are above 0, got {self.frame_rate} and "
                f"{self.slow_motion}"
            )
        if (self.every > 1) + (self.multiplier > 1) + self.is_constant > 1:
            raise ValueError(
                "every, a multiplier of the frame rate, and a frame rate or slow motion exclude "
                "each other: give one of them"
            )

    @property
    def is_constant(self) -> bool:
        """Whether frames are evenly spaced, however those of the source are."""
        return self.frame_rate is not None or self.slow_motion != 1

    def rate(self, video: LatentVideo) -> Fraction:
        """Of what is shown, in frames/s."""
        if self.is_constant:
            return self.frame_rate or video.frame_rate
        return video.frame_rate * self.multiplier / self.every

    def time_base(self, video: LatentVideo) -> Fraction:
        return 1 / self.rate(video) if self.is_constant else video.time_base / self.multiplier

    def end(self, video: LatentVideo) -> Fraction:
        """When the last frame shown ends, in s."""
        return (
            video.duration + (self.frames_before + self.frames_after) / video.frame_rate
        ) * self.slow_motion

    def num_frames(self, video: LatentVideo) -> int:
        if self.is_constant:
            return max(1, math.ceil(self.end(video) * self.rate(video)))
        span = video.num_frames - 1 + self.frames_before + self.frames_after
        return span * self.multiplier // self.every + 1

    def timestamps(self, video: LatentVideo) -> Iterator[Fraction]:
        """Of each frame, in frames of the source from its first; below 0 before it."""
        if not self.is_constant:
            step = Fraction(self.every, self.multiplier)
            yield from (n * step - self.frames_before for n in range(self.num_frames(video)))
            return
        start, rate, index = self.frames_before / video.frame_rate, self.rate(video), 0
        for shown in range(self.num_frames(video)):
            seconds = shown / rate / self.slow_motion - start
            while index + 2 < video.num_frames and video.times[index + 1] <= seconds:
                index += 1
            yield min(
                _frame_at(video, index, seconds), Fraction(video.num_frames - 1 + self.frames_after)
            )

    def shown_at(self, video: LatentVideo) -> Iterator[Fraction]:
        """When each frame is shown, in s from the first."""
        if self.is_constant:
            yield from (number / self.rate(video) for number in range(self.num_frames(video)))
            return
        start = self.frames_before / video.frame_rate
        yield from (start + _time_at(video, one) for one in self.timestamps(video))


def _time_at(video: LatentVideo, timestamp: Fraction) -> Fraction:
    """Seconds at `timestamp` (in frames), in proportion; outside the video at its frame rate."""
    last = video.num_frames - 1
    if not 0 < timestamp < last:
        nearest = 0 if timestamp <= 0 else last
        return video.times[nearest] + (timestamp - nearest) / video.frame_rate
    before, rest = int(timestamp), timestamp % 1
    return video.times[before] + rest * (video.times[before + 1] - video.times[before])


def _frame_at(video: LatentVideo, index: int, seconds: Fraction) -> Fraction:
    """The inverse of `_time_at`, where `index` is the last frame before, and not the very last."""
    if seconds <= 0:
        return seconds * video.frame_rate
    if seconds >= video.times[-1]:
        return video.num_frames - 1 + (seconds - video.times[-1]) * video.frame_rate
    start, end = video.times[index : index + 2]
    return index + (seconds - start) / (end - start)


def check_decode(
    source: Path,
    video: LatentVideo,
    output: Path,
    audio_from: Path | None = None,
    grid: FrameGrid | None = None,
) -> None:
    """ValueError for what `decode_file` could not read or write; `video` was read from `source`."""
    if output == PIPE:  # what is opened there is seen
        if audio_from is not None:
            _check_sound(audio_from)
        return
    check_output(source, output)
    with suppress(Rehearsed), _decoded_output(video, output, audio_from, grid or FrameGrid()):
        raise Rehearsed


def decode_file(
    model: Autoencoder,
    video: LatentVideo | Iterable[LatentVideo],
    output: Path,
    num_inference_steps: int = 1,
    seed: int = 0,
    audio_from: Path | None = None,
    progress: Progress | None = None,
    grid: FrameGrid | None = None,
) -> Report:
    """Re-generate `output` from a latent file's content, at the frames or between, as `grid` says.

    Also from the parts of a video, one after another: those of `read_parts`. They are decoded as
    they come, unless `grid` asks for other frames than there are. `output` "-" is standard output,
    in Matroska. Raises ValueError where another encoder made the latents, and for what cannot be
    written.
    """
    model, grid = _with_latent_files(model), grid or FrameGrid()
    parts = iter([video] if isinstance(video, LatentVideo) else video)
    if grid != FrameGrid():
        parts = iter([joined(list(parts))])
    first, encoder_id = next(parts), model.encoder_id()
    _check_encoder(first, encoder_id)
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    report = Report(first.height, first.width)
    stamps = None if grid == FrameGrid() else grid.timestamps(first)
    decoder = StreamDecoder(
        model, first.height, first.width, num_inference_steps, generator, stamps
    )
    with _decoded_output(first, output, audio_from, grid) as writer:
        shown: deque[Fraction] = deque()

        def take(frames: np.ndarray) -> None:
            _write(writer, frames, [shown.popleft() for _ in frames])
            report.num_decoded += len(frames)
            if progress:
                progress(len(frames))

        for part in chain([first], parts):
            _check_encoder(part, encoder_id)
            model.geometry_at(part.temporal_compression_ratio)  # which may not be of this model
            shown.extend(grid.shown_at(part) if stamps else part.times)
            for latents, size in part.chunks():
                report.count(size, latents)
                for frames in decoder.push(EncodedChunk(latents, size)):
                    take(frames)
        for frames in decoder.finish():
            take(frames)
        writer.end = grid.end(part)
    report.notes = writer.notes
    report.elapsed_s = time.perf_counter() - start
    return report


def _check_encoder(video: LatentVideo, encoder_id: str) -> None:
    if video.encoder_id != encoder_id:
        raise ValueError(
            f"these latents were made by encoder {video.encoder_id}, this model's is "
            f"{encoder_id}: decode with the model that encoded them (--model)"
        )


@contextmanager
def _decoded_output(
    video: LatentVideo, output: Path, audio_from: Path | None, grid: FrameGrid
) -> Iterator[VideoWriter]:
    if audio_from is not None:
        check_output(audio_from, output)
        _check_sound(audio_from)
    _check_png(output, lambda: grid.num_frames(video) > 1)
    with VideoWriter(
        output,
        width=video.width,
        height=video.height,
        frame_rate=grid.rate(video),
        sample_aspect_ratio=video.sample_aspect_ratio,
        audio_from=audio_from,
        time_base=grid.time_base(video),
    ) as writer:
        yield writer


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
