"""Steps per second of training on this CPU, before and after tuning, side by side.

Each row is a process of its own; they take their steps in turn (A B C A B C ...), on the same
batches, four of 8 videos for one of 32 images as `regen train` draws them, from the embedded
weights. Times are medians, in seconds of the clock and of the CPU, which other work on the machine
stretches less. Losses must be equal but for rounding in all rows but the first version's, whose
model is another. At the end the share of the time that `regen train`'s loader lets such steps wait.

    git worktree add /tmp/untuned 40cab70   # today's model, its step as before any tuning
    git worktree add /tmp/first 1b3a365     # the first version, with a model of its own
    python benchmarks/train_step.py --untuned /tmp/untuned --first /tmp/first
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

HERE = Path(__file__).parents[1]
CYCLE = 5  # steps, the last of them images
NUM_VIDEOS, NUM_IMAGES, CROP, TARGETS, NUM_FRAMES = 8, 32, 96, (0, 3, 7), 9


def moving(generator: torch.Generator, num_frames: int, crop: int) -> torch.Tensor:
    """A random picture that drifts, `[3, num_frames, crop, crop]` in [-1, 1]."""
    side = crop + 3 * num_frames
    picture = torch.rand(1, 3, side // 6, side // 6, generator=generator)
    picture = F.interpolate(picture, (side, side), mode="bilinear")[0] * 2 - 1
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    starts = [(dy * t, dx * t) for t in range(num_frames)]
    return torch.stack([picture[:, y : y + crop, x : x + crop] for y, x in starts], dim=1)


def fixed_batch(step: int) -> dict[str, torch.Tensor]:
    """Arguments of the objective in step number `step`."""
    generator = torch.Generator().manual_seed(step)
    is_image = step % CYCLE == CYCLE - 1
    count, num_frames = (NUM_IMAGES, 1) if is_image else (NUM_VIDEOS, NUM_FRAMES)
    chunk = torch.stack([moving(generator, num_frames, CROP) for _ in range(count)])
    times = torch.tensor([0]) if is_image else torch.tensor(TARGETS)
    timestep = torch.rand(count, generator=generator).clamp_min(1e-3)
    timestep[::2] = 1
    return {
        "chunk": chunk,
        "target": chunk[:, :, times],
        "frame_times": times.float().expand(count, -1),
        "noise": torch.randn(count, 3, len(times), CROP, CROP, generator=generator),
        "timestep": timestep,
    }


class Trainer:
    """Model, optimiser and averages of the checkout that is on the path, and its step."""

    def __init__(self, preset: str, weights: str, changes: list[str]) -> None:
        from diffusers.training_utils import EMAModel

        from regen.loading import load_model
        from regen.model import dit
        from regen.model.autoencoder import AutoencoderREGEN
        from regen.model.objective import ObjectiveConfig, REGENObjective
        from regen.model.presets import PRESETS
        from regen.training import loop
        from regen.training.config import TrainConfig

        torch.manual_seed(0)
        self.model = AutoencoderREGEN(**PRESETS[preset]()).train()
        if hasattr(self.model, "set_chunk_ratio"):  # not the first version, which had other weights
            self.model.load_state_dict(load_model(weights).state_dict())
        self.objective = REGENObjective(self.model, ObjectiveConfig())
        config = TrainConfig(data=(), output=Path())
        if hasattr(loop, "make_optimizer"):  # the first version
            self.optimizer = loop.make_optimizer(self.model, config)
        else:
            from regen.training.optimizer import make_optimizer

            self.optimizer = make_optimizer(self.model, config)
        self.ema = EMAModel(self.model.parameters(), use_ema_warmup=True, power=0.75)
        if "attention" in changes:
            dit.SHORT_SEQUENCE = 0
        if "layout" in changes:
            self.model.encoder.conv_in.register_forward_pre_hook(lambda _, args: args[0].clone(
                memory_format=torch.contiguous_format
            ))  # fmt: skip
        if "float32" in changes:
            for name in ("encoder", "decoder"):
                network = getattr(self.model.shortcut.picture, name)
                network.forward = torch.autocast("cpu", enabled=False)(network.forward)
        if "compile_blocks" in changes:
            self.model.compile_repeated_blocks(dynamic=False)
        if "compile" in changes:
            self.objective = torch.compile(self.objective, dynamic=False)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.objective(**batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.model.parameters())
        return float(loss.detach())


def work(preset: str, weights: str, changes: list[str]) -> None:
    """In the process of a row: a step for each line that comes in; prints JSON."""
    trainer = Trainer(preset, weights, changes)
    for step, _ in enumerate(sys.stdin):
        batch = fixed_batch(step)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        loss = trainer.step(batch)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        print(json.dumps({"loss": loss, "wall_s": wall_s, "cpu_s": cpu_s}), flush=True)


def seconds_per_step(steps: list[dict[str, float]], name: str) -> float:
    """Median of each kind of step, weighed as they occur; the first cycle is a warm-up."""
    images = [one[name] for index, one in enumerate(steps) if index % CYCLE == CYCLE - 1]
    videos = [one[name] for index, one in enumerate(steps) if index % CYCLE != CYCLE - 1]
    return ((CYCLE - 1) * median(videos[CYCLE - 1 :]) + median(images[1:])) / CYCLE


def compare(options: argparse.Namespace) -> None:
    rows: dict[str, tuple[Path, list[str]]] = {
        "this checkout": (HERE, []),
        "fused attention at short sequences": (HERE, ["attention"]),
        "3D convolutions with channels first": (HERE, ["layout"]),
        "networks of the picture codec in float32": (HERE, ["float32"]),
        "with --compile-blocks": (HERE, ["compile_blocks"]),
        "with --compile": (HERE, ["compile"]),
    }
    if options.untuned:
        rows["without any tuning"] = options.untuned, []
    if options.first:
        rows["first version, its own model"] = options.first, []
    workers = {}
    for name, (folder, changes) in rows.items():
        command = [sys.executable, __file__, "--work", "--preset", options.preset]
        command += ["--weights", options.weights]
        command += ["--threads", str(options.threads), "--changes", *changes]
        environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(folder.resolve() / "src")}
        workers[name] = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for step in range(options.cycles * CYCLE):
        for name, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            found[name].append(json.loads(worker.stdout.readline()))
        losses = ", ".join(f"{found[name][-1]['loss']:.6f}" for name in rows)
        print(f"step {step}: losses {losses}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.communicate()
    print("| | steps/s | ratio | steps/s of CPU | ratio | largest difference of a loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    reference = found["this checkout"]
    for name, steps in found.items():
        cells = [name]
        for kind in ("wall_s", "cpu_s"):
            seconds = seconds_per_step(steps, kind)
            cells += [f"{1 / seconds:.3f}", f"{seconds_per_step(reference, kind) / seconds:.2f}"]
        pairs = zip(steps, reference, strict=True)
        worst = max(abs(one["loss"] - other["loss"]) for one, other in pairs)
        print(f"| {' | '.join(cells)} | {worst:.1g} |")


def wait_share(preset: str, weights: str, num_steps: int) -> float:
    """Share of the time that steps of this checkout wait for `regen train`'s loader."""
    from regen.chunking import to_float
    from regen.data.batches import BatchConfig, TrainingBatches
    from regen.data.clips import prepare_clips
    from regen.training.loop import TimedLoader
    from regen.video import VideoWriter

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        for index in range(8):
            generator = torch.Generator().manual_seed(index)
            frames = (moving(generator, 24, 256) + 1) * 127.5
            writer = VideoWriter(
                folder / f"clips/{index}.mp4", width=256, height=256, frame_rate=Fraction(24)
            )
            with writer:
                for number, frame in enumerate(frames.permute(1, 2, 3, 0).byte().numpy()):
                    writer.write(frame, Fraction(number, 24))
        clips = prepare_clips([folder / "clips"], folder / "cache").clips
        batches = TrainingBatches(clips, BatchConfig(0, num_steps, NUM_FRAMES))
        trainer = Trainer(preset, weights, [])
        loader = TimedLoader(batches, range(num_steps), num_workers=1)
        for step, batch in enumerate(loader):
            given: dict[str, Any] = fixed_batch(step)  # noise and times are not the loader's
            chunk, target = to_float(batch["chunk"]), to_float(batch["target"])
            noise, timestep = torch.randn_like(target), given["timestep"][:1].expand(len(chunk))
            trainer.step(
                {
                    "chunk": chunk,
                    "target": target,
                    "frame_times": batch["frame_times"],
                    "noise": noise,
                    "timestep": timestep,
                }
            )
            if step == CYCLE - 1:
                loader.wait_share()  # the start is not counted
        return loader.wait_share()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--untuned", type=Path, help="checkout of the step before the tuning")
    parser.add_argument("--first", type=Path, help="checkout of the first version")
    parser.add_argument("--preset", default="tiny_8x")
    parser.add_argument("--weights", default="tiny-8x8x8", help="embedded model of that preset")
    parser.add_argument("--cycles", type=int, default=4, help=f"of {CYCLE} steps; one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--changes", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.work:
        work(options.preset, options.weights, options.changes)
        return
    if options.cycles < 2:
        parser.error("--cycles is at least 2: the first is not counted")
    compare(options)
    share = wait_share(options.preset, options.weights, 4 * CYCLE)
    print(f"\nwaiting for batches: {share:.1%} of the time")


if __name__ == "__main__":
    main()
