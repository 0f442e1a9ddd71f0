"""`regen train`'s options: a frozen dataclass, which is also its `--help`; its base: any run's."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from regen.data.locations import check_outside
from regen.files import write_json
from regen.model.presets import MAGVIT_PRESETS, PRESETS

# Old names of options, which this version still takes, and finds in the config.json of a run.
RENAMED = {
    "cooldown_share": "cooldown_fraction",
    "image_share": "image_fraction",
    "noise_only_share": "noise_only_fraction",
    "max_bad_share": "max_bad_fraction",
    "given_share": "conditioning_fraction",
}

# Options that may change between the start of a run and its resumption.
FREE_OPTIONS = {
    "output", "cache", "chunk_cache", "num_workers", "validate_every", "validation_clips",
    "checkpoint_every", "data", "max_bad_fraction",
    "keep_last", "keep_every", "tracker",
    "learning_rate",  # lower, where the loss was not finite
    "embedder", "text_encoder",  # where they are; what they are is checked
    "prompts", "num_inference_steps", "guidance_scale",  # of the sheets
    "gradient_checkpointing", "shard", "gradient_accumulation_steps",
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """What every run of the loop has, whatever it trains. The same command again resumes."""

    data: tuple[str, ...]
    """What to train on."""
    output: Path
    """Folder of the run: checkpoints, TensorBoard log, sample sheets, and at the end the model."""
    steps: int = 20000
    """Iterations in all."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: on the matrices of the blocks, and AdamW at half the rate on everything else."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 200
    """Iterations of linear warm-up."""
    cooldown_fraction: float = 0.25
    """Last fraction of the iterations, over which the learning rate falls linearly to 0."""
    weight_decay: float = 0.01
    """Weight decay (matrices only)."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are what is validated and exported."""
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Precision of the matrix products."""
    compile: bool = False
    """Compile the training step: slower to start (minutes on a CPU), then faster."""
    compile_blocks: bool = False
    """Compile the transformer's blocks only, all at once: quick to start; works with --shard."""
    gradient_accumulation_steps: int = 1
    """Batches per iteration and process. 1 process x 2 is the same as 2 processes x 1."""
    gradient_checkpointing: bool = False
    """Compute the blocks again in the backward pass: less memory, more time."""
    shard: bool = False
    """Split weights, averages and moments among the processes (FSDP2): for large models."""
    seed: int = 0
    """Everything random follows from it."""
    validate_every: int = 1000
    """Iterations between validations."""
    checkpoint_every: int = 500
    """Iterations between checkpoints."""
    keep_last: int = 2
    """Checkpoints to keep; older ones are deleted."""
    keep_every: int = 0
    """Also keep the checkpoints of every so many iterations; 0: none."""
    tracker: str = "tensorboard"
    """Where curves go: tensorboard (OUTPUT/logs), another that accelerate knows and that is
    installed (wandb, mlflow, ...), or none."""
    num_workers: int = 1
    """Processes that prepare batches."""

    def check(self) -> None:
        """ValueError for an option out of range."""
        if not self.data:
            raise ValueError("--data takes at least one folder")
        periods = ("validate_every", "checkpoint_every", "keep_last", "gradient_accumulation_steps")
        self._check_range(1, math.inf, "steps", *periods)
        self._check_range(
            0, math.inf, "warmup_steps", "num_workers", "seed", "keep_every", "weight_decay"
        )
        self._check_range(0, 1, "cooldown_fraction", "ema_decay")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate is a positive number, got {self.learning_rate}")
        if self.seed >= 2**63:
            raise ValueError(f"--seed has 63 bits at most, got {self.seed}")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"--keep-every is a multiple of --checkpoint-every {self.checkpoint_every}, "
                f"got {self.keep_every}"
            )
        if self.compile and self.shard:
            raise ValueError("--compile is of one process' model: with --shard, --compile-blocks")

    def _check_range(self, low: float, high: float, *names: str) -> None:
        expected = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        for name in names:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} is {expected}, got {value}")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train an embedder on clips and photos. The same command again resumes."""

    data: tuple[str, ...]
    """Folders of clips and photos (MP4, MOV, WebM, GIF, PNG, JPEG, ...), searched recursively;
    manifests (.csv, .jsonl, .parquet); shards (.tar, folders of them). Shards and manifests also as
    URLs (s3://, gs://, https://, ...). docs/data.md tells more."""
    init: str | None = None
    """Start from this model: name of embedded weights, a folder, or a hub id. What does not fit the
    preset is named and randomly initialised."""
    train_only: Literal["all", "decoder"] = "all"
    """decoder: the encoder of --init stays as it is, and so do its latents."""
    latent_noise: float = 0.0
    """Noise on the latents that the decoder learns from, in their standard deviations, from 0 to
    this for each sample: so that it forgives what a generative model makes."""
    preset: str = "natural_32x"
    """Model configuration; one of regen.model.presets. magvit_... is the paper's baseline."""
    perceptual_weights: Path | None = None
    """VGG-16 for the baseline's LPIPS loss, a local safetensors or .pth file (features.N.weight,
    .bias as torchvision and timm name them; LPIPS's linN.model.1.weight are torchmetrics' where it
    has none); without it a Laplacian pyramid takes its place."""
    prediction_type: Literal["sample", "v_prediction", "epsilon"] = "sample"
    """What the decoder predicts; natural_32x: sample."""
    chunks: int = 6000
    """natural_32x: chunks that later frames learn from, their motion estimated once, 1 MB each."""
    chunk_cache: Path | None = None
    """Folder of those chunks; default: OUTPUT/chunks."""
    perceptual_weight: float = 0.0
    """natural_32x: weight of LPIPS (VGG-16) beside the squared error."""
    color_augmentation: bool = True
    """Rotate hues, change saturation and gamma of half of the samples."""
    video_batch_size: int = 8
    """Videos per iteration and process."""
    image_batch_size: int = 32
    """Images per iteration and process."""
    image_fraction: float = 0.2
    """Fraction of the iterations that are images."""
    shapes: Literal["square", "aspect"] = "square"
    """square: crops of --crop pixels at random positions. aspect: whole pictures in their own
    aspect ratio, each iteration of one shape: images of --image-size, videos of --video-size."""
    crop: int = 96
    """Pixels on a side of the square crops, a multiple of 32."""
    image_size: int = 256
    """aspect: images have about as many pixels as a square with this side; a multiple of 32."""
    video_size: tuple[int, int] = (192, 320)
    """aspect: height and width of videos, multiples of 32; upright ones have them swapped."""
    num_targets: int = 3
    """Frames decoded of each video: random ones, so that an iteration sees more videos."""
    other_tasks: float = 0.3
    """Fraction of interpolation and extrapolation at the last iteration; grows linearly from 0."""
    noise_only_fraction: float = 0.5
    """Fraction of samples at timestep 1 (pure noise), which decide one-step quality."""
    detail_weighting: bool = True
    """Weigh each sample by the inverse of its detail, as PSNR does."""
    cache: Path | None = None
    """Folder of decoded clips (about 300 KB a frame of 256 pixels); default: OUTPUT/cache. none:
    clips are decoded when they are drawn, which needs more --num-workers and no disk."""
    exclude_sources: tuple[str, ...] = ()
    """Sources that neither train nor validate, e.g. those of clips kept for an evaluation."""
    validation_sources: int = 12
    """Sources held out of training; one clip of each is measured."""
    validation_clips: int = 0
    """Measure the first so many of those clips only; 0: all."""
    max_bad_fraction: float = 0.05
    """Stop when more than this fraction of the files cannot be read, at the start or later."""

    @property
    def decode_once(self) -> bool:
        return str(self.cache) != "none"

    def check(self) -> None:
        """ValueError for an option out of range."""
        presets = [*PRESETS, *MAGVIT_PRESETS]
        if self.preset not in presets:
            raise ValueError(f"--preset is one of {', '.join(presets)}, got {self.preset!r}")
        if self.preset in MAGVIT_PRESETS:
            self._check_baseline()
        for name, sides in (
            ("crop", (self.crop,)),
            ("image-size", (self.image_size,)),
            ("video-size", self.video_size),
        ):
            for side in sides:
                if side % 32 or side < 32:
                    raise ValueError(f"--{name} is a multiple of 32, got {side}")
        super().check()
        for folder in self.data:  # a run's sheets are pictures
            check_outside("--output", self.output, folder)
        self._check_range(
            1, math.inf, "chunks", "video_batch_size", "image_batch_size", "num_targets"
        )
        counts = ("validation_sources", "validation_clips", "latent_noise", "perceptual_weight")
        self._check_range(0, math.inf, *counts)
        self._check_range(
            0, 1, "image_fraction", "other_tasks", "noise_only_fraction", "max_bad_fraction"
        )
        if self.train_only == "decoder" and self.init is None:
            raise ValueError("--train-only decoder keeps the encoder of --init MODEL: give one")

    def _check_baseline(self) -> None:
        """ValueError for what the baseline's model and losses have no part for."""
        regen_only = ("shard", "latent_noise", "compile_blocks", "compile")
        given = [name for name in regen_only if getattr(self, name)]
        given += ["train_only"] * (self.train_only != "all")
        given += ["prediction_type"] * (self.prediction_type != "sample")
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{options}: not for preset {self.preset}, which is not REGEN's")
        if self.perceptual_weights is not None and not self.perceptual_weights.is_file():
            raise ValueError(f"--perceptual-weights {self.perceptual_weights}: no such file")


def shared_options(kind: Any, config: RunConfig) -> dict[str, Any]:
    """The options of `config` that the dataclass `kind` has under the same name."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in vars(config).items() if name in names}


def run_options(config: RunConfig, num_processes: int = 1) -> dict[str, Any]:
    """As config.json holds them, with the number of batches per iteration over all processes."""
    options: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return options | {"batches_per_step": num_processes * config.gradient_accumulation_steps}


def check_run_config(path: Path, config: RunConfig, num_processes: int = 1) -> None:
    """ValueError where the run was started with other options than `config`.

    An option that did not exist then had its default. The number of processes may change if the
    number of batches per iteration does not.
    """
    if not path.exists():
        return
    plain = {field.name: field.default for field in fields(config)} | {"batches_per_step": 1}
    defaults = json.loads(json.dumps(plain, default=str))  # as the file has them
    stored = json.loads(path.read_text())
    before = {RENAMED.get(name, name): value for name, value in stored.items()}
    for name, value in run_options(config, num_processes).items():
        old = before.get(name, defaults.get(name))
        if name == "batches_per_step" and old != value:
            raise ValueError(
                f"{path.parent} was started with {old} batches per iteration, now it is {value}: "
                "processes x --gradient-accumulation-steps must stay the same"
            )
        if name not in FREE_OPTIONS and old != value:
            raise ValueError(
                f"{path.parent} was started with {name} = {old}, now it is {value}: "
                "give the same options to resume, or another --output to start again"
            )


def changed_rate(path: Path, config: RunConfig) -> str:
    """What to say where a run resumes with another learning rate than it was started with."""
    before = json.loads(path.read_text())["learning_rate"] if path.exists() else None
    if before in (None, config.learning_rate):
        return ""
    return f"the learning rate is {config.learning_rate:g}, the run was started with {before:g}"


def write_run_config(path: Path, config: RunConfig, num_processes: int = 1) -> None:
    """Keep the options that the run was started with; a file that is there stays."""
    if not path.exists():
        write_json(path, run_options(config, num_processes))
