"""`regen world`: clips of a generated world."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from regen.cli.options import check_numbers
from regen.cli.output import print_table


@dataclass(frozen=True)
class World:
    """Synthesise clips of a small generated world, with exact captions; the same command resumes.

    Coloured shapes that move, for text-to-video on a small machine. The split held_out has the
    combinations of colour, shape and direction that the split train never shows.

    Example: regen world world --clips 1000; regen cache world latents
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder for clip-000000.mp4, ... and manifest.csv with the captions."""
    clips: int = 1000
    """Number of clips."""
    size: tuple[int, int] = (64, 64)
    """Height and width in pixels."""
    frames: int = 17
    """Frames of a clip."""
    fps: int = 24
    """Frames a second."""
    split: Literal["train", "held_out"] = "train"
    """Which combinations of colour, shape and direction."""
    seed: int = 0
    """Another seed is another world."""

    def run(self) -> None:
        check_numbers(seed=self.seed, clips=self.clips, frames=self.frames, fps=self.fps)
        from regen.moving_shapes import write_world

        height, width = self.size
        num_kept = write_world(
            self.folder, self.clips, self.frames, height, width, self.fps, self.seed, self.split
        )
        rows = [
            ("clips", f"{self.clips:,} of {self.frames} frames of {width} x {height}"),
            ("made before", f"{num_kept:,}"),
            ("captions", str(self.folder / "manifest.csv")),
            ("encode them", f"regen cache {self.folder} latents"),
        ]
        print_table(rows)
