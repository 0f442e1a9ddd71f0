"""`regen train`'s options: one frozen dataclass, which is also its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regen.models.presets import PRESETS


@dataclass(frozen=True)
class TrainConfig:
    """Train an embedder on folders of clips and photos. The same command again goes on where it stopped."""

    data: tuple[Path, ...]
    """Folders of clips and photos (MP4, MOV, MKV, WebM, GIF, PNG, JPEG, ...), searched to the bottom."""
    output: Path
    """Folder of the run: checkpoints, TensorBoard log, sample sheets, and at the end the model."""
    preset: str = "tiny_8x"
    """Model configuration; one of regen.models.presets."""
    prediction_type: Literal["sample", "v_prediction", "epsilon"] = "sample"
    """What the decoder predicts."""
    steps: int = 20000
    """Iterations in all."""
    video_batch_size: int = 8
    """Videos per iteration and process."""
    image_batch_size: int = 32
    """Images per iteration and process; one iteration in five is images."""
    crop: int = 96
    """Pixels on a side of the training crops, a multiple of 32."""
    num_targets: int = 3
    """Frames decoded of each video: random ones, so that an iteration sees more videos."""
    other_tasks: float = 0.3
    """Share of interpolation and extrapolation at the last iteration; it grows linearly from 0."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate; the linear shortcuts take a tenth of it."""
    warmup_steps: int = 200
    """Iterations of linear warm-up."""
    cooldown_share: float = 0.25
    """Last share of the iterations, over which the learning rate falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay (matrices only)."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are what is validated and exported."""
    noise_only_share: float = 0.5
    """Share of samples at timestep 1 (pure noise), which decide one-step quality."""
    detail_weighting: bool = True
    """Weigh each sample by the inverse of its detail, as PSNR does."""
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Precision of the matrix products."""
    compile: bool = False
    """Compile the training step with torch.compile: slower to start (minutes on a CPU), then faster."""
    seed: int = 0
    """Everything random follows from it."""
    cache: Path | None = None
    """Folder of decoded clips (about 300 KB a frame of 256 pixels); default: OUTPUT/cache."""
    validation_sources: int = 12
    """Sources held out of training; one clip of each is measured."""
    validate_every: int = 1000
    """Iterations between validations."""
    checkpoint_every: int = 500
    """Iterations between checkpoints."""
    num_workers: int = 1
    """Processes that prepare batches."""
    max_bad_share: float = 0.05
    """Stop when more than this share of the files cannot be read."""

    def check(self) -> None:
        """ValueError for an option out of range."""
        if self.preset not in PRESETS:
            raise ValueError(f"--preset is one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name in ("steps", "video_batch_size", "image_batch_size", "num_targets", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {getattr(self, name)}")
        if self.checkpoint_every < 1 or self.learning_rate <= 0 or self.validation_sources < 0:
            raise ValueError("--checkpoint-every and --learning-rate are positive, --validation-sources at least 0")
        if self.crop % 32 or self.crop < 32:
            raise ValueError(f"--crop is a multiple of 32, got {self.crop}")
