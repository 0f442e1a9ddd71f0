"""`regen encode`: a video to a latent file."""

import sys
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal, cast

import tyro

from regen.cli.options import ModelOptions, OutPath, SourceOptions, check_numbers
from regen.cli.output import common_rows, print_table, size_of, with_progress


@dataclass(frozen=True)
class Encode(ModelOptions, SourceOptions):
    """Compress a video to a latent file.

    Example: regen encode clip.mp4 clip.safetensors --storage int8
    """

    output: OutPath = tyro.MISSING
    """The latent file to write, which ends in .safetensors; or - for standard output."""
    storage: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """How a latent value is stored; docs/decoding.md says what each costs."""
    quality: float | None = None
    """From 0, the smallest file, to 100: each chunk as long as its content allows, at the ratio in
    time that follows, up to the model's highest. By default all have the ratio of --model."""

    def run(self) -> None:
        check_numbers(short_side=self.short_side)
        from regen.data.locations import local_file
        from regen.video import PIPE, is_streamed

        if self.source == "-" and is_streamed(cast(BufferedReader, sys.stdin.buffer).peek(12)):
            self._run(PIPE)
            return
        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import check_encode, encode_file
        from regen.video import PIPE, open_video

        reader = open_video(source, self.stream, self.skip_damaged)
        check_encode(reader, self.output)
        model = self.load()
        report = with_progress(
            reader.info.num_frames,
            lambda progress: encode_file(
                model,
                reader,
                self.output,
                self.storage,
                self.short_side,
                progress,
                self.quality,
            ),
        )
        rows = common_rows(report, model, self.storage)
        if self.output == PIPE:
            print_table(rows, sys.stderr)
            return
        pixels = report.num_frames * report.height * report.width
        rows += [
            ("bits per pixel", f"{8 * self.output.stat().st_size / pixels:.3f}"),
            *([] if source == PIPE else [("source", f"{self.source} ({size_of(source)})")]),
            ("written", f"{self.output} ({size_of(self.output)})"),
        ]
        print_table(rows)
