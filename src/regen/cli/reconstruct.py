"""`regen reconstruct`: a video to latents and back."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from regen.cli.options import ModelOptions, OutPath, SourceOptions, check_numbers
from regen.cli.output import common_rows, print_table, size_of, with_progress


@dataclass(frozen=True)
class Reconstruct(ModelOptions, SourceOptions):
    """Compress a video to REGEN latents and re-generate it from them.

    Example: regen reconstruct clip.mp4 again.mp4 --compare
    """

    output: OutPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png of a picture; without a suffix: a folder of PNGs."""
    num_inference_steps: int = 1
    """Denoising steps of the decoder. One is the fastest and has the best PSNR."""
    seed: int = 0
    """Seed of the decoder's noise."""
    compare: bool = False
    """Also write OUT.compare: source, reconstruction and 4 x error side by side."""
    storage: Literal["float32", "bfloat16", "int8"] = "float32"
    """Round the latents as a latent file of this type would, to see what that costs."""
    quality: float | None = None
    """From 0 to 100: chunks as long as their content allows; see regen encode --help."""

    def run(self) -> None:
        check_numbers(
            num_inference_steps=self.num_inference_steps, short_side=self.short_side, seed=self.seed
        )
        from regen.data.locations import local_file

        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import check_reconstruct, compare_path, reconstruct_file

        info = check_reconstruct(source, self.output, self.compare, self.short_side, self.stream)
        model = self.load()
        report = with_progress(
            info.num_frames,
            lambda progress: reconstruct_file(
                model,
                source,
                self.output,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed,
                compare=self.compare,
                short_side=self.short_side,
                storage=self.storage,
                progress=progress,
                stream=self.stream,
                skip_damaged=self.skip_damaged,
                quality=self.quality,
            ),
        )
        rows = [
            ("PSNR, mean over frames", f"{report.psnr:.2f} dB"),
            ("SSIM, mean over frames", _of_pictures(report.ssim)),
            ("LPIPS, mean over frames", _of_pictures(report.lpips, " (AlexNet)")),
            *common_rows(report, model, self.storage),
            ("source", f"{self.source} ({size_of(source)})"),
            ("written", f"{self.output} ({size_of(self.output)})"),
        ]
        if self.compare:
            rows.append(("side by side", str(compare_path(self.output))))
        print_table(rows)


def _of_pictures(value: float | None, network: str = "") -> str:
    if value is None:
        from regen.evaluation.networks import ABSENT

        return ABSENT
    return "n/a (the picture is too small)" if math.isnan(value) else f"{value:.4f}{network}"
