"""`regen plan`: what a training run will need, before anything is rented.

`step_cost` counts a step's FLOPs and bytes; this is the arithmetic around it: weights, gradients,
optimiser and averaged weights, many GPUs, time at a stated utilisation, and money.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from regen.model.presets import PRESETS
from regen.training.config import TrainConfig
from regen.training.recipes import RECIPES

if TYPE_CHECKING:
    from regen.model.autoencoder import AutoencoderREGEN
    from regen.training.step_cost import StepCost, StepShape

# The paper's batches (B.3), by preset: videos, and images, of a GPU.
PAPER_BATCHES = {
    recipe["preset"]: (recipe["video_batch_size"], recipe["image_batch_size"])
    for recipe in RECIPES.values()
}
# Makers' numbers: dense bfloat16 TFLOP/s, and memory in GiB.
GPUS = {"a100": (312, 80), "h100": (989, 80), "h200": (989, 140), "b200": (2250, 180)}
USABLE_MEMORY = 0.9  # the rest: context, communication, what the allocator cannot use
GIB = 2**30


@dataclass(frozen=True)
class PlanConfig:
    """What a training run needs; batch and sizes default to the paper's."""

    preset: str = "regen_32x"
    """Model configuration; one of regen.model.presets."""
    gpus: int = 32
    """Number of GPUs."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "a100"
    """Kind of GPU: its bfloat16 peak (312, 989, 989, 2250 TFLOP/s), its memory (80, 80, 140, 180
    GiB)."""
    peak_tflops: float | None = None
    """Peak of another GPU in TFLOP/s."""
    memory_gib: float | None = None
    """Memory of another GPU in GiB."""
    utilization: float = 0.4
    """Fraction of the peak that training reaches: an assumption; measure yours."""
    price_per_gpu_hour: float = 2.0
    """What an hour of one GPU costs, in your currency."""
    steps: int = 100_000
    """Iterations; one in five is images."""
    video_batch_size: int | None = None
    """Videos per iteration and GPU."""
    image_batch_size: int | None = None
    """Images per iteration and GPU."""
    height: int | None = None
    """Pixels of a training video."""
    width: int | None = None
    """Pixels of a training video."""
    image_size: int | None = None
    """Pixels on a side of a training image."""
    num_targets: int | None = None
    """Frames decoded of each video, by default all of a chunk (k + 1)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp spreads weights, gradients, optimiser and averaged weights over the GPUs."""

    def check(self) -> None:
        """ValueError for an option out of range."""
        if self.preset not in PRESETS:
            raise ValueError(f"--preset is one of {', '.join(PRESETS)}, got {self.preset!r}")
        unit = 8 * (PRESETS[self.preset]().get("attention_window") or 1)
        for name in ("height", "width", "image_size"):
            value = getattr(self, name)
            if value is not None and (value % unit or value < unit):
                raise ValueError(f"{_option(name)} is a multiple of {unit}, got {value}")
        for name in ("gpus", "steps", "video_batch_size", "image_batch_size", "num_targets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_option(name)} is at least 1, got {value}")
        for name in ("peak_tflops", "memory_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{_option(name)} is a positive number, got {value}")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"--utilization is above 0 and at most 1, got {self.utilization}")
        if not 0 <= self.price_per_gpu_hour < float("inf"):
            raise ValueError(f"--price-per-gpu-hour is at least 0, got {self.price_per_gpu_hour}")

    def shapes(self) -> "tuple[StepShape, StepShape]":
        """The batch of a video step, and of an image step."""
        from regen.training.step_cost import StepShape

        if self.preset in PAPER_BATCHES:
            ratio = PRESETS[self.preset]()["temporal_compression_ratio"]
            videos, images = PAPER_BATCHES[self.preset]
            height, width, side, targets = 192, 320, 256, ratio + 1
        else:  # what `regen train` does with it
            videos, images = TrainConfig.video_batch_size, TrainConfig.image_batch_size
            height = width = side = TrainConfig.crop
            targets = TrainConfig.num_targets
        side = self.image_size or side
        return (
            StepShape(
                self.video_batch_size or videos,
                self.height or height,
                self.width or width,
                self.num_targets or targets,
            ),
            StepShape(self.image_batch_size or images, side, side, 1, is_image=True),
        )


@dataclass(frozen=True)
class StateBytes:
    """What stays in a GPU's memory from step to step, gradients included, in bytes.

    `buckets`: where DistributedDataParallel gathers gradients. `gathered`: weights and gradients
    in bfloat16 of what fsdp has in use: all outside the blocks, and two blocks.
    """

    weights: float
    gradients: float
    optimizer: float
    averaged: float
    buckets: float
    gathered: float

    def total(self) -> float:
        return self.resident() + self.gradients

    def resident(self) -> float:
        """All but the gradients, which come in the backward pass."""
        return self.weights + self.optimizer + self.averaged + self.buckets + self.gathered


def state_bytes(model: "AutoencoderREGEN", gpus: int, sharding: str) -> StateBytes:
    """Float32 weights, gradients, AdamW's two moments and averaged weights."""
    every = 4 * sum(p.numel() for p in model.parameters())
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    is_sharded = sharding == "fsdp" and gpus > 1
    fraction = 1 / gpus if is_sharded else 1.0
    blocks = [
        sum(p.numel() for p in module.parameters())
        for module in model.modules()
        if type(module).__name__ in model._no_split_modules
    ]
    in_use = every // 4 - sum(blocks) + 2 * max(blocks)
    return StateBytes(
        weights=fraction * every,
        gradients=fraction * trained,
        optimizer=fraction * 2 * trained,
        averaged=fraction * every,
        buckets=0.0 if is_sharded or gpus == 1 else trained,
        gathered=4.0 * in_use if is_sharded else 0.0,
    )


def peak_bytes(state: StateBytes, cost: "StepCost") -> float:
    """The most that a step holds: in the backward pass, or in the optimiser's step.

    The latter takes the root of AdamW's second moment of all weights at once.
    """
    if state.gathered:
        backward = state.total() + cost.activation_peak_bytes
    else:
        backward = state.resident() + cost.peak_bytes
    return max(backward, state.total() + state.optimizer / 2)


def plan(config: PlanConfig) -> list[tuple[str, str]]:
    """The rows that `regen plan` prints. Raises ValueError for options that cannot work."""
    config.check()
    import torch

    from regen.data.batches import BatchConfig
    from regen.model.autoencoder import AutoencoderREGEN
    from regen.training.step_cost import step_cost

    preset = PRESETS[config.preset]()
    with torch.device("meta"):
        model = AutoencoderREGEN(**preset)
    shapes = config.shapes()
    video, image = (step_cost(preset, one, config.gradient_checkpointing) for one in shapes)
    state = state_bytes(model, config.gpus, config.sharding)
    peaks = peak_bytes(state, video), peak_bytes(state, image)
    default_tflops, default_memory = GPUS[config.gpu]
    tflops = config.peak_tflops or default_tflops
    memory = (config.memory_gib or default_memory) * GIB
    fraction = BatchConfig.image_fraction
    flops = (1 - fraction) * video.flops + fraction * image.flops
    rate = 1e12 * tflops * config.utilization
    hours = config.steps * flops / rate / 3600
    saved = "activations kept for the backward pass"
    rows = [
        ("preset", config.preset),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        *_part_rows(model),
        ("video step, each GPU", _shape(shapes[0], preset["temporal_compression_ratio"])),
        ("image step, each GPU", _shape(shapes[1], 0)),
        ("FLOPs of a video step", _flops(video)),
        ("FLOPs of an image step", _flops(image)),
        ("FLOPs of a step, mean", f"{flops / 1e12:,.4g} TFLOP ({fraction:.0%} are images)"),
        ("memory of each GPU", f"{memory / GIB:g} GiB ({config.gpu})"),
        ("  weights, float32", _gib(state.weights)),
        ("  gradients, float32", _gib(state.gradients)),
        ("  AdamW's moments", _gib(state.optimizer)),
        ("  averaged weights", _gib(state.averaged)),
        ("  gradient buckets", _gib(state.buckets)),
        ("  gathered by fsdp", _gib(state.gathered)),
        ("  weights in bfloat16", _gib(0 if state.gathered else video.copies_bytes)),
        (f"  {saved}", f"{_gib(video.saved_bytes)} (images {_gib(image.saved_bytes)})"),
        ("  most at once", f"{_gib(peaks[0])} (images {_gib(peaks[1])})"),
        ("fits", verdict(config, state, max(peaks), memory)),
        ("time of a video step", _seconds(video.flops / rate)),
        ("time of an image step", _seconds(image.flops / rate)),
        ("assumed", f"{config.utilization:.0%} of {tflops:g} TFLOP/s"),
        (f"{config.steps:,} steps", f"{hours / 24:,.1f} days"),
        ("GPU-hours", f"{hours * config.gpus:,.0f} on {config.gpus} GPUs"),
        (
            "cost",
            f"{hours * config.gpus * config.price_per_gpu_hour:,.0f} "
            f"at {config.price_per_gpu_hour:.2f} a GPU-hour",
        ),
    ]
    return [row for row in rows if row[1] != _gib(0)]


def verdict(config: PlanConfig, state: StateBytes, peak: float, memory: float) -> str:
    """Whether `peak` fits, and if not what to do."""
    usable = USABLE_MEMORY * memory
    if peak <= usable:
        return f"yes ({peak / memory:.0%} of the memory)"
    advice = []
    if not config.gradient_checkpointing:
        advice.append("--gradient-checkpointing")
    if config.sharding == "none" and config.gpus > 1:
        advice.append("--sharding fsdp")
    largest = max(shape.batch_size for shape in config.shapes())
    if largest > 1 and state.total() < usable:
        advice.append("a smaller --video-batch-size or --image-batch-size")
    advice += ["fewer --num-targets", "a GPU with more memory"]
    return f"no ({peak / memory:.0%} of the memory): try {', '.join(advice)}"


def _part_rows(model: "AutoencoderREGEN") -> list[tuple[str, str]]:
    return [
        (f"  {part}", f"{sum(p.numel() for p in module.parameters()):,}")
        for part, module in model.named_children()
    ]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shape(shape: "StepShape", ratio: int) -> str:
    size = f"{shape.width} x {shape.height}"
    if shape.is_image:
        return f"{shape.batch_size} images of {size}"
    return f"{shape.batch_size} x {ratio + 1} frames of {size}, {shape.num_targets} decoded"


def _flops(cost: "StepCost") -> str:
    return f"{cost.flops / 1e12:,.4g} TFLOP ({cost.flops_forward / 1e12:,.4g} forward)"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value >= 1 else f"{1000 * value:,.3g} ms"
