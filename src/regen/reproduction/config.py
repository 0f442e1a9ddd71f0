"""`regen reproduce`'s options: one frozen dataclass, which is also its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Experiment = Literal[
    "table1", "table2", "table3", "table4", "table5",
    "figure7", "figure9", "figure12", "figure13", "figure14", "figure15",
]  # fmt: skip


@dataclass(frozen=True)
class ReproduceConfig:
    """Train what is missing, measure it, and print our numbers beside the paper's."""

    data: tuple[str, ...] = ()
    """What to train on, as regen train takes it."""
    eval_data: Path | None = None
    """Folder of clips to measure on; none of them may be in --data."""
    output: Path = Path("runs/reproduce")
    """Folder of models and tables; the same command again resumes, other experiments share it."""
    minutes: float = 60.0
    """Training of each model, in minutes: the same for all. 0 (paper size only): the paper's
    iterations."""
    seeds: tuple[int, ...] = (0,)
    """Each model is trained once for each; tables have the mean, and the range."""
    size: Literal["small", "paper"] = "small"
    """small: what a CPU trains. paper: the paper's sizes, batches and pictures."""
    eval_size: int = 256
    """Pixels on a side of the clips that are measured: short side to it, centre cut out."""
    eval_frames: int = 33
    """First frames of a clip that are measured."""
    max_clips: int = 0
    """Measure on the first so many clips only, in the order of their names; 0: all."""
    cache: Path | None = None
    """Folder of decoded training clips, as in regen train; default: OUTPUT/cache."""
    perceptual_weights: Path | None = None
    """VGG-16 for the baseline's training, as in regen train."""
    interpolated: Path | None = None
    """figure13: folder of what another interpolator (EMA-VFI, ...) made of OUTPUT/figure13: for
    each clip there a video or a folder of pictures of its name, the 8 frames between its 9."""

    def check(self, experiment: Experiment) -> None:
        """ValueError for an option out of range."""
        if self.eval_size % 32 or self.eval_size < 32:
            raise ValueError(f"--eval-size is a multiple of 32, got {self.eval_size}")
        if experiment == "table4":
            return
        if not self.data:
            raise ValueError("--data names what to train on: give folders of clips and photos")
        if self.eval_data is None or not self.eval_data.is_dir():
            raise ValueError(
                f"--eval-data is a folder of clips to measure on, got {self.eval_data}"
            )
        if self.minutes < 0 or (self.minutes == 0 and self.size == "small"):
            raise ValueError(f"--minutes is above 0 (0 with --size paper only), got {self.minutes}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds are different numbers from 0 on, got {list(self.seeds)}")
        if self.eval_frames < 1 or self.max_clips < 0:
            raise ValueError("--eval-frames is at least 1, --max-clips at least 0")
