"""`regen plan` against this machine: a Markdown table of planned and measured memory and time.

Each case is two processes that run training steps on the CPU, one for memory and one for time.
Memory is what PyTorch's allocator holds at most, and the growth of the process's largest resident
set. Time is planned from the step's FLOPs and the speed of one large matrix product in bfloat16, as
if the step were that; measured over planned is so the inverse of the utilisation.

    python benchmarks/plan.py [--threads N]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.profiler import ProfilerActivity, profile

from regen.model.autoencoder import AutoencoderREGEN
from regen.model.objective import ObjectiveConfig, REGENObjective
from regen.model.presets import PRESETS
from regen.training.config import TrainConfig
from regen.training.optimizer import make_optimizer
from regen.training.plan import peak_bytes, state_bytes
from regen.training.step_cost import StepShape, step_cost

CUT = {"encoder_block_out_channels": (32, 64, 128, 192), "num_layers": 4, "num_attention_heads": 4}
CASES: dict[str, tuple[str, dict[str, Any], StepShape]] = {
    "small_8x": ("small_8x", {}, StepShape(8, 96, 96, 3)),
    "small_8x, half the videos": ("small_8x", {}, StepShape(4, 96, 96, 3)),
    "small_8x, larger crop": ("small_8x", {}, StepShape(4, 128, 128, 3)),
    "regen_4x, 4 blocks of 512": ("regen_4x", CUT, StepShape(1, 96, 160, 5)),
}


def resident_bytes(line: str) -> int:
    """VmRSS or VmHWM of this process; of Linux only."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{line}:")[1].split()[0])


def matmul_flops_per_s(size: int = 2048) -> float:
    left, right = torch.randn(2, size, size, dtype=torch.bfloat16)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def allocated_peak(profiler: profile) -> int:
    """The most that PyTorch's allocator held while `profiler` was on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    live = largest = 0
    moves = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(moves, key=lambda one: one["ts"]):
        live += event["args"]["Bytes"]
        largest = max(largest, live)
    return largest


def measure(case: str) -> None:
    """In the process of a case: three steps, the last under the profiler; prints JSON."""
    preset, changes, shape = CASES[case]
    before = resident_bytes("VmRSS")
    model = AutoencoderREGEN(**(PRESETS[preset]() | changes)).train()
    objective = REGENObjective(model, ObjectiveConfig())
    optimizer = make_optimizer(model, TrainConfig(data=(), output=Path()))
    ema = EMAModel(model.parameters())
    chunk = torch.rand(shape.batch_size, 3, model.geometry.chunk_length, shape.height, shape.width)
    target = torch.rand(shape.batch_size, 3, shape.num_targets, shape.height, shape.width)
    times, timestep = torch.rand(shape.batch_size, shape.num_targets), torch.rand(shape.batch_size)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(chunk, target, times, torch.randn_like(target), timestep).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(model.parameters())
        return time.perf_counter() - start

    step_s = min(step() for _ in range(3))
    resident = resident_bytes("VmHWM") - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    print(
        json.dumps(
            {
                "step_s": step_s,
                "resident": resident,
                "allocated": allocated_peak(profiler),
                "flops_per_s": matmul_flops_per_s(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", choices=CASES, help="only measure this one, print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        measure(options.case)
        return
    print("| case | step alone, MiB: planned | allocated | ratio ", end="")
    print("| in all, MiB: planned | resident ", end="")
    print("| ratio | step, s: at matmul speed | measured | utilisation |\n|" + "---|" * 10)
    # Memory: large blocks go back to the system at once, so that resident is what is held. Pages
    # then cost as much time as the step; so time is measured in another process, without that.
    for_memory = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for case, (preset, changes, shape) in CASES.items():
        config = PRESETS[preset]() | changes
        with torch.device("meta"):
            model = AutoencoderREGEN(**config)
        cost = step_cost(config, shape, on_gpu=False)
        whole = peak_bytes(state_bytes(model, 1, "none"), cost)
        command = [sys.executable, __file__, "--case", case, "--threads", str(options.threads)]
        found, timed = (
            json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)
            for env in (for_memory, None)
        )
        planned_s = cost.flops / timed["flops_per_s"]
        pairs = (cost.peak_bytes, found["allocated"]), (whole, found["resident"])
        cells = [case]
        for planned, measured in pairs:
            mebibytes = f"{planned / 2**20:.0f}", f"{measured / 2**20:.0f}"
            cells += [*mebibytes, f"{measured / planned:.2f}"]
        cells += [
            f"{planned_s:.2f}",
            f"{timed['step_s']:.2f}",
            f"{planned_s / timed['step_s']:.0%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
