"""`regen decode`: a latent file to a video."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from regen.cli.options import LatentsLocation, ModelOptions, OutPath, check_numbers
from regen.cli.output import common_rows, print_table, size_of, with_progress


@dataclass(frozen=True)
class Decode(ModelOptions):
    """Re-generate a video from a latent file: as it was, a quick preview, or in slow steps between.

    Example: regen decode clip.safetensors again.mp4 --audio clip.mp4
    """

    source: LatentsLocation = tyro.MISSING
    """A latent file that regen encode wrote with the same model; also its URL, or -."""
    output: OutPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png of a picture; without a suffix: a folder of PNGs."""
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

    def run(self) -> None:
        check_numbers(
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            every=self.every,
            frame_rate_multiplier=self.frame_rate_multiplier,
        )
        if self.every > 1 and self.frame_rate_multiplier > 1:
            raise ValueError("--every and --frame-rate-multiplier exclude each other: give one")
        from regen.data.locations import local_file

        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import FrameGrid, check_decode, decode_file
        from regen.latent_file import read_latents

        grid = FrameGrid(self.every, self.frame_rate_multiplier)
        video = read_latents(source)
        check_decode(source, video, self.output, self.audio, grid)
        model = self.load()
        report = with_progress(
            grid.num_frames(video.num_frames),
            lambda progress: decode_file(
                model,
                video,
                self.output,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed,
                audio_from=self.audio,
                progress=progress,
                grid=grid,
            ),
        )
        rows = [
            *common_rows(report, model, video.temporal_compression_ratio, video.storage),
            ("generated", f"{report.num_decoded} frames"),
            ("latent file", f"{self.source} ({size_of(source)})"),
            ("written", f"{self.output} ({size_of(self.output)})"),
        ]
        print_table(rows)
