"""`regen encode`: a video to a latent file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from regen.cli.options import ModelOptions, OutPath, SourceOptions, check_numbers
from regen.cli.output import common_rows, print_table, size_of, with_progress


@dataclass(frozen=True)
class Encode(ModelOptions, SourceOptions):
    """Compress a video to a latent file.

    Example: regen encode clip.mp4 clip.safetensors --storage int8
    """

    output: OutPath = tyro.MISSING
    """The latent file to write; ends in .safetensors."""
    storage: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """How a latent value is stored; docs/decoding.md says what each costs."""

    def run(self) -> None:
        check_numbers(short_side=self.short_side)
        from regen.data.locations import local_file

        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import check_encode, encode_file

        info = check_encode(source, self.output, self.stream)
        model = self.load()
        report = with_progress(
            info.num_frames,
            lambda progress: encode_file(
                model,
                source,
                self.output,
                self.storage,
                self.short_side,
                progress,
                self.stream,
                self.skip_damaged,
            ),
        )
        pixels = report.num_frames * report.height * report.width
        rows = [
            *common_rows(report, model, model.temporal_compression_ratio, self.storage),
            ("bits per pixel", f"{8 * self.output.stat().st_size / pixels:.3f}"),
            ("source", f"{self.source} ({size_of(source)})"),
            ("written", f"{self.output} ({size_of(self.output)})"),
        ]
        print_table(rows)
