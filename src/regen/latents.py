"""The latent file: one safetensors file that holds all a decoder needs. The only module that knows its layout.

Tensors: `latents` `[8, n, h, w]` (normalised; float32, bfloat16, or int8 with `scale` `[8, 2]`), `times` float64 `[T]` in
seconds, `latents_mean` and `latents_std` `[8, 2]` (content, motion). Everything else is text in the metadata.
"""

import hashlib
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from regen.chunking import ChunkGeometry

StorageDtype = Literal["float32", "bfloat16", "int8"]
FORMAT = "regen-latents-1"


@dataclass(frozen=True)
class LatentVideo:
    """A compressed video. `latents` float32 `[8, n, h, w]`, normalised; `times` seconds of each frame from the first."""

    latents: torch.Tensor
    times: list[float]
    height: int
    width: int
    frame_rate: Fraction
    sample_aspect_ratio: Fraction
    temporal_compression_ratio: int
    latents_mean: torch.Tensor
    latents_std: torch.Tensor
    encoder_id: str
    storage: StorageDtype = "bfloat16"

    @property
    def num_frames(self) -> int:
        return len(self.times)


def quantize(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float `[8, n, h, w]` -> int8 and its `scale` `[8, 2]`: the largest magnitude per channel and kind over 127."""
    scale = torch.ones(latents.shape[0], 2)
    for kind in (0, 1):
        if latents.shape[1] > kind:
            scale[:, kind] = latents[:, kind::2].abs().amax(dim=(1, 2, 3)).clamp_min(1e-6) / 127
    return (latents / _per_frame(scale, latents.shape[1])).round().to(torch.int8), scale


def dequantize(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return values.float() * _per_frame(scale, values.shape[1])


def _per_frame(statistic: torch.Tensor, num_latent_frames: int) -> torch.Tensor:
    return statistic[:, torch.arange(num_latent_frames) % 2][:, :, None, None]


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_latents(path: Path, video: LatentVideo) -> None:
    """Write `video` in its `storage` type; the file appears whole or not at all. Raises ValueError if it cannot."""
    tensors = {
        "times": torch.tensor(video.times, dtype=torch.float64),
        "latents_mean": video.latents_mean.float().cpu().contiguous(),
        "latents_std": video.latents_std.float().cpu().contiguous(),
    }
    if video.storage == "int8":
        tensors["latents"], tensors["scale"] = quantize(video.latents)
    else:
        tensors["latents"] = video.latents.to(getattr(torch, video.storage)).contiguous()
    metadata = {
        "format": FORMAT,
        "num_frames": str(video.num_frames),
        "height": str(video.height),
        "width": str(video.width),
        "frame_rate": str(video.frame_rate),
        "sample_aspect_ratio": str(video.sample_aspect_ratio),
        "temporal_compression_ratio": str(video.temporal_compression_ratio),
        "encoder_id": video.encoder_id,
        "storage": video.storage,
        "checksum": _checksum(tensors),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """ValueError unless a file can be made at `path`; asked before any work is done."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} does not exist: make the folder first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path.parent} is not writable")


def read_latents(path: Path) -> LatentVideo:
    """Read and check a latent file. Raises ValueError for a missing, foreign or damaged one."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a latent file or is damaged ({error}): encode the video again") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not a latent file of `regen encode` ({FORMAT})")
    if metadata.get("checksum") != _checksum(tensors):
        raise ValueError(f"{path} is damaged (its checksum differs): encode the video again")
    try:
        storage = metadata["storage"]
        assert storage in get_args(StorageDtype)
        values = tensors["latents"]
        video = LatentVideo(
            latents=dequantize(values, tensors["scale"]) if storage == "int8" else values.float(),
            times=tensors["times"].tolist(),
            height=int(metadata["height"]),
            width=int(metadata["width"]),
            frame_rate=Fraction(metadata["frame_rate"]),
            sample_aspect_ratio=Fraction(metadata["sample_aspect_ratio"]),
            temporal_compression_ratio=int(metadata["temporal_compression_ratio"]),
            latents_mean=tensors["latents_mean"],
            latents_std=tensors["latents_std"],
            encoder_id=metadata["encoder_id"],
            storage=storage,  # type: ignore[arg-type]
        )
        geometry = ChunkGeometry(video.temporal_compression_ratio)
        geometry.check_num_frames(video.num_frames, video.latents.shape[1])
    except (KeyError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is damaged (field {error}): encode the video again") from None
    return video
