"""Models for the tables: trained where they are missing, each for the same time.

How many iterations fit into the time is measured before a run and kept beside it, so that a run
which is stopped resumes as the same run.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regen.files import write_json
from regen.loading import Autoencoder, load_model
from regen.model.presets import MAGVIT_PRESETS, PRESETS
from regen.reproduction.config import ReproduceConfig
from regen.training.config import TrainConfig, check_run_config
from regen.training.distributed import make_accelerator
from regen.training.embedder import start_run, train
from regen.training.loop import OwnBatches, Run, train_step
from regen.training.recipes import RECIPES

PROBE_STEPS = 1000  # iterations of the run that a probe pretends to be
PROBE_PLACES = (0.0, 0.25, 0.5, 0.75)  # of it; the adversarial losses begin at a third
WARMUP_FRACTION = 0.1
VALIDATIONS = 4  # of a run: whether its curve is flat; 1 where they would take too long
VALIDATION_FRACTION = 0.25  # most of a run's time that its validations take, but for one clip
SMALL = {"crop": 64, "video_batch_size": 8, "image_batch_size": 16}
# Paper: B.2.1, 128 x 128, 6 images or 2 videos a GPU, 200K iterations.
PAPER_MAGVIT = {
    "crop": 128,
    "video_batch_size": 2,
    "image_batch_size": 6,
    "steps": 200_000,
    "learning_rate": 1e-4,
    "warmup_steps": 1000,
    "ema_decay": 0.9999,
    "detail_weighting": False,
}


@dataclass(frozen=True)
class Trained:
    """A model and what its training took. `curve`: PSNR on clips held out of training, after each
    quarter of it, or at its end."""

    preset: str
    seed: int
    folder: Path
    steps: int
    wall_minutes: float
    curve: list[float]

    def load(self) -> Autoencoder:
        return load_model(str(self.folder), "cuda" if torch.cuda.is_available() else "cpu")


def trained(config: ReproduceConfig, preset: str, seed: int) -> Trained:
    """The model of `preset`, trained now where it is not there yet."""
    minutes = f"{config.minutes:g}min" if config.minutes else "paper"
    output = config.output / "models" / f"{preset}-{minutes}-seed{seed}"
    plan = output / "plan.json"
    base = _train_config(config, preset, seed, output)
    if plan.exists():
        planned = json.loads(plan.read_text())
    else:
        planned = _plan(base, config.minutes)
        write_json(plan, planned)
    steps = planned["steps"]
    run = replace(
        base,
        steps=steps,
        warmup_steps=min(base.warmup_steps, int(WARMUP_FRACTION * steps)),
        validate_every=-(-steps // planned.get("validations", VALIDATIONS)),
        validation_clips=planned.get("validation_clips", 0),
        checkpoint_every=max(1, min(500, steps // 4)),
        keep_last=1,
    )
    check_run_config(output / "config.json", run, int(os.environ.get("WORLD_SIZE", 1)))
    _check_data(output / "config.json", run)
    if not (output / "model" / "config.json").exists():
        print(
            f"{preset}, seed {seed}: {steps} steps, {planned.get('summary', planned.get('said'))}",
            flush=True,
        )
        train(run)
    lines = map(json.loads, (output / "validation.jsonl").read_text().splitlines())
    quarters = {round(one["step"] * VALIDATIONS / steps): one for one in lines}
    minutes = quarters[VALIDATIONS]["elapsed_s"] / 60
    curve = [one["validation/psnr"] for one in quarters.values()]
    return Trained(preset, seed, output / "model", steps, minutes, curve)


def _check_data(path: Path, run: TrainConfig) -> None:
    """ValueError where the run in `path` was started with other data: its model is of those."""
    data = json.loads(path.read_text())["data"] if path.exists() else list(run.data)
    if data != list(run.data):
        raise ValueError(
            f"{path.parent} was trained on {' '.join(data)}, --data is {' '.join(run.data)}: give "
            "the same, or another --output"
        )


def _train_config(config: ReproduceConfig, preset: str, seed: int, output: Path) -> TrainConfig:
    options: dict[str, Any] = dict(SMALL)
    if config.size == "paper" and preset in MAGVIT_PRESETS:
        options = dict(PAPER_MAGVIT)
    elif config.size == "paper":
        ratio = PRESETS[preset]()["temporal_compression_ratio"]
        options = RECIPES[f"paper_{ratio}x"] | {"gradient_checkpointing": True}
    if preset in MAGVIT_PRESETS:
        options["perceptual_weights"] = config.perceptual_weights
    options |= {"preset": preset, "seed": seed, "tracker": "none"}
    cache = config.cache or config.output / "cache"
    return TrainConfig(data=config.data, output=output, cache=cache, **options)


def _plan(config: TrainConfig, minutes: float) -> dict[str, Any]:
    """How many iterations take `minutes`; 0: as many as `config` says."""
    if minutes == 0:
        plan = {"steps": config.steps, "summary": "the paper's number"}
        return plan | {"validations": VALIDATIONS, "validation_clips": 0}
    seconds, clip_seconds, num_clips, clock = seconds_per_step(config)
    steps = max(1, round(60 * minutes / seconds))
    affordable = VALIDATION_FRACTION * 60 * minutes / clip_seconds
    validations = VALIDATIONS if affordable >= VALIDATIONS else 1
    return {
        "steps": steps,
        "seconds_per_step": seconds,
        "clock": clock,
        "summary": f"{minutes:g} minutes at {seconds:.3f} s of {clock} each",
        "validations": validations,
        "validation_clips": min(num_clips, max(1, int(affordable / validations))),
        "seconds_per_validation_clip": clip_seconds,
    }


def seconds_per_step(config: TrainConfig) -> tuple[float, float, int, str]:
    """Mean seconds of a step over a run, batches included, and of validating one of how many clips.

    Last, the clock that counted: one thread of a CPU is timed by its own clock, which other
    programs do not slow down.
    """
    probe = replace(
        config, steps=PROBE_STEPS, output=config.output.with_name(f".{config.output.name}.probe")
    )
    is_own_clock = not torch.cuda.is_available() and torch.get_num_threads() == 1
    clock = time.process_time if is_own_clock else time.perf_counter
    probe.output.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(probe)
    run = start_run(probe, accelerator)
    if not run.held_out:
        raise ValueError(
            "--data leaves no clip to validate on: give clips of more sources, at most three of one"
        )
    batches = OwnBatches(run)
    mean = 0.0
    for place in PROBE_PLACES:
        begin = int(place * PROBE_STEPS)
        for is_image in (False, True):
            item = _first_of(batches, begin, is_image)
            if item is None:
                continue
            fraction = probe.image_fraction if is_image else 1 - probe.image_fraction
            mean += fraction * _time_step(run, batches, item, clock) / len(PROBE_PLACES)
    num_clips, run.held_out = len(run.held_out), run.held_out[:1]
    start = clock()
    run.validate(run, None)
    clip_seconds = 2 * (clock() - start)  # averaged weights, and raw ones
    return mean, clip_seconds, num_clips, "the thread's clock" if is_own_clock else "the wall clock"


def _first_of(batches: OwnBatches, start: int, is_image: bool) -> int | None:
    for item in range(start, start + 50):
        if (batches[item]["task"] == "image") == is_image:
            return item
    return None


def _time_step(run: Run, batches: OwnBatches, item: int, clock: Any) -> float:
    """The quicker of two; the first of all pays for what is made once."""
    times = []
    for _ in range(2):
        began = clock()
        run.step = item
        train_step(run, [batches[item]])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - began)
    return min(times)
