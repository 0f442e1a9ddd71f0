"""Options that several commands share, and the checks of numbers."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from regen.loading import Autoencoder


InLocation = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
OutPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
LatentsLocation = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LATENTS")]
Paths = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...] OUT")]
LATENT_SUFFIX = ".safetensors"  # of latent files


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str = "natural@8"
    """Name of embedded weights, a folder with config.json, or a hub id (owner/name). NAME@RATIO
    compresses RATIO times in time: natural@8 in chunks of 9 frames, natural in chunks of 33."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; bfloat16 is faster on GPUs and recent CPUs."""

    def check_model(self) -> str:
        """The device to run on; ValueError where it or the model is not there. Loads nothing."""
        from regen.loading import find_device, find_model

        find_model(self.model)
        return find_device(self.device)

    def load(self) -> "Autoencoder":
        import torch

        from regen.loading import load_model

        return load_model(self.model, self.check_model(), getattr(torch, self.dtype))


@dataclass(frozen=True)
class SourceOptions:
    """What video is read, and how."""

    source: InLocation = tyro.MISSING
    """A video (MP4, MOV, MKV, WebM, GIF, ...), a picture, or a folder of pictures; also its URL, or
    - for standard input."""
    short_side: int | None = None
    """Resize so that the short side has this many pixels; by default nothing is resized."""
    stream: int | None = None
    """Which video stream of a file with several, from 0; by default the one marked as default."""
    skip_damaged: bool = False
    """Read past damage; the frames lost are counted. By default a damaged file is an error."""


def check_numbers(seed: int = 0, **at_least_one: int | None) -> None:
    """ValueError for an option out of range; None is an option not given."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is at least 0 and below 2**63, got {seed}")
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {value}")


def split_paths(paths: tuple[str, ...], max_bad_fraction: float) -> tuple[list[str], str]:
    """Inputs and the output folder, which is the last; ValueError for options out of range."""
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"--max-bad-fraction is from 0 to 1, got {max_bad_fraction}")
    if len(paths) < 2:
        raise ValueError("give inputs and, last, the folder that is written")
    return list(paths[:-1]), paths[-1]


def parse_rate(text: str) -> Fraction:
    """Frames/s from "60", "30000/1001" or "23.976"; NTSC rates are those that broadcasters mean."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"--frame-rate is a number above 0 or a fraction, 60 or 30000/1001; got {text}"
        ) from None
    for whole in (24, 30, 60, 120):
        ntsc = Fraction(1000 * whole, 1001)
        if text in (f"{float(ntsc):.2f}", f"{float(ntsc):.3f}"):
            return ntsc
    return rate
