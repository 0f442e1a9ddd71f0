"""File to file: reconstruct, encode, decode. Chunk by chunk, so memory does not grow with the length of a video.

What the command line and the web page call; models come in ready, files go out whole or not at all.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from regen.evaluation.metrics import psnr, ssim
from regen.evaluation.sheets import comparison
from regen.latents import LatentVideo, StorageDtype, check_writable, dequantize, quantize, write_latents
from regen.models.autoencoder import AutoencoderREGEN
from regen.video import VideoReader, VideoWriter, frames_to_video, open_video, video_to_frames

Progress = Callable[[int], None]  # called with the number of frames just finished


@dataclass
class Report:
    """What happened to one file. PSNR in dB and SSIM are means over frames of 8-bit RGB; sizes in bytes."""

    num_frames: int = 0
    height: int = 0
    width: int = 0
    num_latent_frames: int = 0
    latent_values: int = 0
    elapsed_s: float = 0.0
    psnr_values: list[float] = field(default_factory=list)
    ssim_values: list[float] = field(default_factory=list)

    @property
    def psnr(self) -> float:
        return math.fsum(self.psnr_values) / len(self.psnr_values)

    @property
    def ssim(self) -> float:
        return math.fsum(self.ssim_values) / len(self.ssim_values)

    @property
    def frames_per_latent_frame(self) -> float:
        return self.num_frames / self.num_latent_frames

    @property
    def values_ratio(self) -> float:
        """Pixel values (RGB) per latent value."""
        return 3 * self.num_frames * self.height * self.width / self.latent_values

    def count(self, frames: np.ndarray, latents: torch.Tensor) -> None:
        self.num_frames += len(frames)
        self.height, self.width = frames.shape[1:3]
        self.num_latent_frames += latents.shape[2]
        self.latent_values += latents.numel()

    def measure(self, frames: np.ndarray, reconstruction: np.ndarray) -> None:
        source, other = frames_to_video(frames)[None], frames_to_video(reconstruction)[None]
        self.psnr_values += psnr(other, source)[0].tolist()
        self.ssim_values += ssim(other, source)[0].tolist()


def read_chunks(reader: VideoReader, chunk_length: int) -> Iterator[tuple[np.ndarray, list[Fraction]]]:
    """(frames uint8 `[n, H, W, 3]`, their times) of each chunk; n = `chunk_length` but for the last."""
    frames: list[np.ndarray] = []
    times: list[Fraction] = []
    for frame in reader:
        frames.append(frame.pixels)
        times.append(frame.time)
        if len(frames) == chunk_length:
            yield np.stack(frames), times
            frames, times = [], []
    if frames:
        yield np.stack(frames), times


def _resize(frames: np.ndarray, short_side: int | None) -> np.ndarray:
    """Bring the short side to `short_side` pixels (bicubic, antialiased); None leaves the frames alone."""
    if short_side is None or min(frames.shape[1:3]) == short_side:
        return frames
    scale = short_side / min(frames.shape[1:3])
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    video = frames_to_video(frames).transpose(0, 1)
    return video_to_frames(F.interpolate(video, size, mode="bicubic", antialias=True).transpose(0, 1))


@torch.inference_mode()
def encode_frames(model: AutoencoderREGEN, frames: np.ndarray) -> torch.Tensor:
    """uint8 `[n, H, W, 3]`, one chunk at most -> latents `[1, 8, 1 or 2, h, w]`."""
    video = frames_to_video(frames)[None].to(model.device)
    return model.encode(video).latents


@torch.inference_mode()
def decode_frames(
    model: AutoencoderREGEN,
    latents: torch.Tensor,
    num_frames: int,
    height: int,
    width: int,
    num_inference_steps: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Latents of one chunk -> uint8 `[num_frames, H, W, 3]`."""
    sample = model.decode(
        latents.to(model.device),
        num_frames=num_frames,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        generator=generator,
    ).sample
    return video_to_frames(sample[0])


def compare_path(output: Path) -> Path:
    """Where `--compare` writes: `out.mp4` -> `out.compare.mp4`."""
    return output.with_name(f"{output.stem}.compare{output.suffix}")


def reconstruct_file(
    model: AutoencoderREGEN,
    source: Path,
    output: Path,
    num_inference_steps: int = 1,
    seed: int = 0,
    compare: bool = False,
    short_side: int | None = None,
    storage: StorageDtype = "float32",
    progress: Progress | None = None,
) -> Report:
    """Compress `source` and re-generate it as `output`, with its timing and sound; `storage` rounds the latents between.

    `compare` also writes source, reconstruction and 4 x error side by side to `compare_path(output)`.
    Raises ValueError (one line) for what cannot be read or written; then nothing is left behind.
    """
    check_distinct(source, output)
    generator = torch.Generator().manual_seed(seed)
    report, start = Report(), time.perf_counter()
    with open_video(source) as reader, _Outputs(reader, source) as outputs:
        for frames, times in read_chunks(reader, model.geometry.chunk_length):
            frames = _resize(frames, short_side)
            height, width = frames.shape[1:3]
            latents = _stored(encode_frames(model, frames), storage)
            reconstruction = decode_frames(
                model, latents, len(frames), height, width, num_inference_steps, generator
            )
            report.count(frames, latents)
            report.measure(frames, reconstruction)
            outputs.write(output, reconstruction, times)
            if compare:
                outputs.write(compare_path(output), comparison(frames, reconstruction), times)
            if progress:
                progress(len(frames))
    report.elapsed_s = time.perf_counter() - start
    return report


def encode_file(
    model: AutoencoderREGEN,
    source: Path,
    output: Path,
    storage: StorageDtype = "bfloat16",
    short_side: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compress `source` to the latent file `output`. Latents are kept in memory (1/24 of the pixels or less)."""
    check_distinct(source, output)
    check_writable(output)
    report, start = Report(), time.perf_counter()
    latents: list[torch.Tensor] = []
    times: list[Fraction] = []
    with open_video(source) as reader:
        for frames, chunk_times in read_chunks(reader, model.geometry.chunk_length):
            frames = _resize(frames, short_side)
            latents.append(encode_frames(model, frames).cpu())
            times += chunk_times
            report.count(frames, latents[-1])
            if progress:
                progress(len(frames))
        video = LatentVideo(
            latents=torch.cat(latents, dim=2)[0],
            times=[float(moment) for moment in times],
            height=report.height,
            width=report.width,
            frame_rate=reader.info.frame_rate,
            sample_aspect_ratio=reader.info.sample_aspect_ratio,
            temporal_compression_ratio=model.temporal_compression_ratio,
            latents_mean=model.latents_mean,
            latents_std=model.latents_std,
            encoder_id=model.encoder_id(),
            storage=storage,
        )
    write_latents(output, video)
    report.elapsed_s = time.perf_counter() - start
    return report


def decode_file(
    model: AutoencoderREGEN,
    video: LatentVideo,
    output: Path,
    num_inference_steps: int = 1,
    seed: int = 0,
    audio_from: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Re-generate `output` from a latent file's content. ValueError where another encoder made the latents."""
    if video.encoder_id != model.encoder_id():
        raise ValueError(
            f"these latents were made by encoder {video.encoder_id}, this model's is {model.encoder_id()}: "
            "decode with the model that encoded them (--model)"
        )
    generator = torch.Generator().manual_seed(seed)
    report, start = Report(), time.perf_counter()
    first = 0
    with VideoWriter(
        output,
        width=video.width,
        height=video.height,
        frame_rate=video.frame_rate,
        sample_aspect_ratio=video.sample_aspect_ratio,
        audio_from=audio_from,
    ) as writer:
        for index, size in enumerate(model.geometry.chunk_sizes(video.num_frames)):
            latents = video.latents[None, :, 2 * index : 2 * index + 2]
            frames = decode_frames(
                model, latents, size, video.height, video.width, num_inference_steps, generator
            )
            for picture, moment in zip(frames, video.times[first : first + size], strict=True):
                writer.write(picture, Fraction(moment).limit_denominator(10**6))
            first += size
            report.count(frames, latents)
            if progress:
                progress(size)
    report.elapsed_s = time.perf_counter() - start
    return report


def check_distinct(source: Path, output: Path) -> None:
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{output} is the input itself: give another name for the output")


def _stored(latents: torch.Tensor, storage: StorageDtype) -> torch.Tensor:
    if storage == "int8":
        return dequantize(*quantize(latents[0].cpu()))[None]
    return latents.to(getattr(torch, storage)).float()


class _Outputs:
    """The video files of one reconstruction, opened at their first frame, finished together or not at all."""

    def __init__(self, reader: VideoReader, source: Path) -> None:
        self.reader, self.source = reader, source
        self.writers: dict[Path, VideoWriter] = {}

    def write(self, path: Path, frames: np.ndarray, times: list[Fraction]) -> None:
        if path not in self.writers:
            info = self.reader.info
            self.writers[path] = VideoWriter(
                path,
                width=frames.shape[2],
                height=frames.shape[1],
                frame_rate=info.frame_rate,
                sample_aspect_ratio=info.sample_aspect_ratio,
                audio_from=self.source if info.has_audio else None,
            ).__enter__()
        for picture, moment in zip(frames, times, strict=True):
            self.writers[path].write(picture, moment)

    def __enter__(self) -> "_Outputs":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self.writers.values():
            writer.__exit__(*exception)  # type: ignore[arg-type]
