"""The latent file: one safetensors file with all that a decoder needs. Only this module knows it.

Tensors: `latents` `[8, n, h, w]`, normalised: float32, bfloat16, or int8 with `scale` float32
`[8, n]`; `times` int64 `[T]` in ticks from the first frame; `latents_mean`, `latents_std` `[8, 2]`
(content, motion). Text in the metadata: frame count, size, rates, geometry, id of the encoder, and
a checksum over everything else, so that a flipped byte anywhere is found.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from regen.chunking import ChunkGeometry
from regen.files import Draft, draft

StorageDtype = Literal["float32", "bfloat16", "int8"]
FORMAT = "regen-latents-1"
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
MAX_TICKS_PER_S = 10**9  # finer times than nanoseconds are rounded to them


@dataclass(frozen=True)
class LatentVideo:
    """A compressed video. `latents`: float `[8, n, h, w]`, normalised; `times` of frames, in s.

    `height`, `width` in pixels; `frame_rate` in frames/s; `time_base` in s, the unit of the
    source's time stamps; statistics `[8, 2]` (content, motion).
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

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def duration(self) -> Fraction:
        """In s."""
        return self.end or self.times[-1] + 1 / self.frame_rate


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
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a latent file that `regen encode` wrote ({FORMAT})")
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise ValueError(f"{path}: damaged, its checksum differs; encode the video again")
    try:
        return _from_file(tensors, metadata)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: damaged ({error}); encode the video again") from None


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
    metadata = {"format": FORMAT, "num_frames": str(video.num_frames), "ticks_per_s": str(ticks)}
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
        **{name: kind(metadata[name]) for name, kind in TEXTS.items()},  # type: ignore[arg-type]
    )
    if int(metadata["num_frames"]) != video.num_frames:
        raise ValueError(f"{video.num_frames} times for {metadata['num_frames']} frames")
    geometry = ChunkGeometry(video.temporal_compression_ratio)
    geometry.check_num_frames(video.num_frames, video.latents.shape[1])
    return video


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
