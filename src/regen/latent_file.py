"""The latent file: one safetensors file with all that a decoder needs. Only this module knows it.

Tensors: `latents` `[8, n, h, w]`, normalised: float32, bfloat16, or int8 with `scale` float32
`[8, n]`; `times` int64 `[T]` in ticks from the first frame; `latents_mean`, `latents_std` `[8, 2]`
(content, motion); where chunks are not all of one length, `chunks` int64 `[K, 2]`: the number of
frames and the ratio in time of each. Text in the metadata: frame count, size, rates, geometry, id
of the encoder, and a checksum over everything else, so that a flipped byte anywhere is found.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from regen.chunking import ChunkGeometry, ChunkSize
from regen.files import Draft, draft

StorageDtype = Literal["float32", "bfloat16", "int8"]
FORMAT = "regen-latents-1"
CHUNKS_FORMAT = "regen-latents-2"  # with `chunks`: programs that do not know them refuse it
SUFFIX = ".safetensors"
# Fields of `LatentVideo` that the metadata holds as text.
TEXTS: dict[str, type[int] | type[Fraction] | type[str]] = {
    "height": int,
    "width": int,
    "frame_rate": Fraction,
    "time_base": Fraction,
    "sample_aspect_ratio": Fraction,
    "temporal_compression_ratio": int,
    "spatial_compression_ratio": int,
    "encoder_id": str,
}
MAX_HEADER = 2**20  # bytes
MAX_TICKS_PER_S = 10**9  # finer times than nanoseconds are rounded to them


@dataclass(frozen=True)
class LatentVideo:
    """A compressed video. `latents`: float `[8, n, h, w]`, normalised; `times` of frames, in s.

    `height`, `width` in pixels; `frame_rate` in frames/s; `time_base` in s, the unit of the
    source's time stamps; statistics `[8, 2]` (content, motion). `sizes` of the chunks; None: all
    but the last are full.
    """

    latents: torch.Tensor
    times: list[Fraction]
    height: int
    width: int
    frame_rate: Fraction
    time_base: Fraction
    sample_aspect_ratio: Fraction
    temporal_compression_ratio: int
    spatial_compression_ratio: int
    latents_mean: torch.Tensor
    latents_std: torch.Tensor
    encoder_id: str
    storage: StorageDtype = "bfloat16"
    end: Fraction | None = None  # s, of the last frame; None: it lasts 1 / frame_rate
    sizes: tuple[ChunkSize, ...] | None = None

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def duration(self) -> Fraction:
        """In s."""
        return self.end or self.times[-1] + 1 / self.frame_rate

    def chunk_sizes(self) -> tuple[ChunkSize, ...]:
        return self.sizes or full_chunks(self.num_frames, self.temporal_compression_ratio)

    def chunks(self) -> Iterator[tuple[torch.Tensor, ChunkSize]]:
        """Latents `[8, 1 or 2, h, w]` of one chunk after another."""
        start = 0
        for size in self.chunk_sizes():
            yield self.latents[:, start : start + size.num_latent_frames], size
            start += size.num_latent_frames


def full_chunks(num_frames: int, ratio: int) -> tuple[ChunkSize, ...]:
    """All of `ratio` + 1 frames, the last one of the rest."""
    return tuple(ChunkSize(one, ratio) for one in ChunkGeometry(ratio).chunk_sizes(num_frames))


def quantize(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float `[8, n, h, w]` -> int8, and its `scale` `[8, n]`: the largest magnitude over 127.

    Each latent frame has its own scale, so a chunk is rounded alike alone and within its video.
    """
    scale = latents.abs().amax(dim=(2, 3)).clamp_min(1e-6) / 127
    return (latents / scale[:, :, None, None]).round().to(torch.int8), scale


def dequantize(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """int8 `[8, n, h, w]` and `scale` `[8, n]` -> float32."""
    return values.float() * scale[:, :, None, None]


def round_latents(latents: torch.Tensor, storage: StorageDtype) -> torch.Tensor:
    """`[8, n, h, w]` -> float32, rounded as in a file of type `storage`, bit for bit."""
    if storage == "int8":
        return dequantize(*quantize(latents))
    return latents.to(getattr(torch, storage)).float()


def write_latents(path: Path, video: LatentVideo) -> None:
    """Write `video` in its `storage` type, as `write_tensors` does."""
    write_tensors(path, *_to_file(video))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises ValueError where it cannot be written."""
    try:
        with draft(path) as temporary:
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(mode)  # safetensors' own is 0600
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot write there ({error})") from None


def check_writable(path: Path) -> None:
    """ValueError unless a latent file can be written at `path`; asked before any work is done."""
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"{path}: latents go into a file that ends in {SUFFIX}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a file")
    try:
        Draft(path).discard()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot write there ({error.strerror}); name an existing, writable folder"
        ) from None


def read_latents(path: Path) -> LatentVideo:
    """Read and check a latent file. Raises ValueError for a missing, foreign or damaged one."""
    if not path.is_file():
        raise ValueError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a latent file, or damaged ({error}); encode the video again"
        ) from None
    return _checked(tensors, metadata, path)


def latents_to_bytes(video: LatentVideo) -> bytes:
    """The latent file of `video`. In a pipe, files of a video's parts follow one another."""
    return save(*_to_file(video))


def read_parts(file: BinaryIO) -> Iterator[LatentVideo]:
    """The latent files that follow one another in a pipe, each as it comes; times are of the whole.

    Raises ValueError for what is no latent file, or damaged, or where there is none.
    """
    head = file.read(8)
    while head:
        size = int.from_bytes(head, "little")
        header = file.read(size) if size <= MAX_HEADER else b""
        try:
            described = json.loads(header)
            metadata = described.pop("__metadata__")
            num_bytes = max(one["data_offsets"][1] for one in described.values())
            tensors = load(head + header + file.read(num_bytes))
        except (ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"-: no latent file that `regen encode` wrote, or cut short ({error})"
            ) from None
        yield _checked(tensors, metadata, "-")
        head = file.read(8)


def joined(parts: Sequence[LatentVideo]) -> LatentVideo:
    """The video of which `parts` follow one another."""
    return replace(
        parts[0],
        latents=torch.cat([part.latents for part in parts], dim=1),
        times=[time for part in parts for time in part.times],
        temporal_compression_ratio=max(part.temporal_compression_ratio for part in parts),
        end=parts[-1].end,
        sizes=tuple(size for part in parts for size in part.chunk_sizes()),
    )


def _checked(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], name: object
) -> LatentVideo:
    if metadata.get("format") not in (FORMAT, CHUNKS_FORMAT):
        raise ValueError(f"{name}: not a latent file that `regen encode` wrote ({FORMAT})")
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise ValueError(f"{name}: damaged, its checksum differs; encode the video again")
    try:
        return _from_file(tensors, metadata)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{name}: damaged ({error}); encode the video again") from None


def _to_file(video: LatentVideo) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    ticks = min(math.lcm(*(time.denominator for time in video.times)), MAX_TICKS_PER_S)
    tensors = {
        "times": torch.tensor([round(time * ticks) for time in video.times]),
        "latents_mean": video.latents_mean.float().cpu().contiguous(),
        "latents_std": video.latents_std.float().cpu().contiguous(),
    }
    if video.storage == "int8":
        tensors["latents"], tensors["scale"] = quantize(video.latents)
    else:
        tensors["latents"] = video.latents.to(getattr(torch, video.storage)).contiguous()
    is_uneven = video.chunk_sizes() != full_chunks(
        video.num_frames, video.temporal_compression_ratio
    )
    if is_uneven:
        tensors["chunks"] = torch.tensor(video.chunk_sizes())
    metadata = {
        "format": CHUNKS_FORMAT if is_uneven else FORMAT,
        "num_frames": str(video.num_frames),
        "ticks_per_s": str(ticks),
    }
    metadata |= {name: str(getattr(video, name)) for name in ("storage", *TEXTS)}
    if video.end is not None:
        metadata["end"] = str(video.end)
    return tensors, metadata | {"checksum": _checksum(tensors, metadata)}


def _from_file(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> LatentVideo:
    storage = metadata["storage"]
    if storage not in get_args(StorageDtype):
        raise ValueError(f"stored as {storage}")
    values, ticks = tensors["latents"], int(metadata["ticks_per_s"])
    video = LatentVideo(
        latents=dequantize(values, tensors["scale"]) if storage == "int8" else values.float(),
        times=[Fraction(tick, ticks) for tick in tensors["times"].tolist()],
        latents_mean=tensors["latents_mean"],
        latents_std=tensors["latents_std"],
        storage=storage,  # type: ignore[arg-type]  # checked above
        end=Fraction(metadata["end"]) if "end" in metadata else None,
        sizes=_sizes(tensors["chunks"]) if metadata["format"] == CHUNKS_FORMAT else None,
        **{name: kind(metadata[name]) for name, kind in TEXTS.items()},  # type: ignore[arg-type]
    )
    if int(metadata["num_frames"]) != video.num_frames:
        raise ValueError(f"{video.num_frames} times for {metadata['num_frames']} frames")
    num_frames = sum(size.num_frames for size in video.chunk_sizes())
    num_latent_frames = sum(size.num_latent_frames for size in video.chunk_sizes())
    if (num_frames, num_latent_frames) != (video.num_frames, video.latents.shape[1]):
        raise ValueError(
            f"chunks of {num_frames} frames in {num_latent_frames} latent frames, for "
            f"{video.num_frames} in {video.latents.shape[1]}"
        )
    return video


def _sizes(values: torch.Tensor) -> tuple[ChunkSize, ...]:
    sizes = tuple(ChunkSize(*row) for row in values.tolist())
    if any(not 1 <= size.num_frames <= size.ratio + 1 for size in sizes):
        raise ValueError("a chunk holds 1 to ratio + 1 frames")
    return sizes


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
