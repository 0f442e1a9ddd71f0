"""`regen decode`: a latent file to a video."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from regen.cli.options import LatentsLocation, ModelOptions, OutPath, check_numbers, parse_rate
from regen.cli.output import common_rows, print_table, size_of, with_progress

if TYPE_CHECKING:
    from regen.latent_file import LatentVideo


@dataclass(frozen=True)
class Decode(ModelOptions):
    """Re-generate a video from a latent file: as it was, or at any other times.

    Example: regen decode clip.safetensors again.mp4 --fps 60 --audio clip.mp4
    """

    source: LatentsLocation = tyro.MISSING
    """A latent file that regen encode wrote with the same model; also its URL; or - for standard
    input, which is decoded as it comes."""
    output: OutPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png of a picture; without a suffix: a folder of PNGs; or - for
    standard output, in Matroska."""
    num_inference_steps: int = 1
    """Denoising steps of the decoder. One is the fastest and has the best PSNR."""
    seed: int = 0
    """Seed of the decoder's noise."""
    audio: Path | None = None
    """Take the sound from this file (latents hold none)."""
    every: int = 1
    """A quick preview: generate every Nth frame only, shown N times as long."""
    frame_rate_multiplier: int = 1
    """Temporal upsampling factor: N - 1 frames are generated between neighbours."""
    frame_rate: Annotated[str | None, tyro.conf.arg(aliases=["--fps"])] = None
    """Convert to this frame rate, in frames/s: 60, 23.976, 30000/1001."""
    slow_motion: float = 1.0
    """Make it this many times as long, at the same frame rate or that of --frame-rate."""
    frames_before: int = 0
    """Generate that many frames before the first."""
    frames_after: int = 0
    """Generate that many frames after the last."""

    def run(self) -> None:
        check_numbers(
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            every=self.every,
            frame_rate_multiplier=self.frame_rate_multiplier,
        )
        from regen.data.locations import local_file
        from regen.latent_file import read_latents, read_parts
        from regen.video import PIPE

        if self.source == "-":
            self._run(PIPE, read_parts(sys.stdin.buffer))
            return
        with local_file(self.source) as source:
            self._run(source, iter([read_latents(source)]))

    def _run(self, source: Path, parts: "Iterator[LatentVideo]") -> None:
        from regen.codec import FrameGrid, check_decode, decode_file
        from regen.video import PIPE

        grid = FrameGrid(
            self.every,
            self.frame_rate_multiplier,
            None if self.frame_rate is None else parse_rate(self.frame_rate),
            Fraction(self.slow_motion).limit_denominator(10**6),
            self.frames_before,
            self.frames_after,
        )
        first = next(parts, None)
        if first is None:
            raise ValueError("-: nothing came from standard input; expected latent files")
        check_decode(source, first, self.output, self.audio, grid)
        model = self.load()
        report = with_progress(
            None if source == PIPE else grid.num_frames(first),
            lambda progress: decode_file(
                model,
                chain([first], parts),
                self.output,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed,
                audio_from=self.audio,
                progress=progress,
                grid=grid,
            ),
        )
        rows = common_rows(report, model, first.storage)
        rows.append(("generated", f"{report.num_decoded} frames"))
        if source != PIPE:
            rows.append(("latent file", f"{self.source} ({size_of(source)})"))
        if self.output == PIPE:
            print_table(rows, sys.stderr)
            return
        print_table([*rows, ("written", f"{self.output} ({size_of(self.output)})")])
