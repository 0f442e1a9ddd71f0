"""What a run reports between two lines of its curves: losses, its speed, and FLOPs of what runs.

FLOPs are counted by operation, as it is dispatched: matrix products, convolutions, attention.
"""

import math
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from regen.flops import FORMULAS

NUM_TRIALS = 5
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else value


class CountedFlops(TorchDispatchMode):
    """Sums `flops` of all that runs within, forward and backward.

    (The library's FlopCounterMode also hooks every module, which sharded ones do not bear.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in FORMULAS:
            self.flops += FORMULAS[packet](*map(_shape, args), **(kwargs or {}))
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


@torch.no_grad()
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product in `dtype`: the best of a few, all threads of the process.

    What utilisation is measured against; a data sheet's number is not what a machine gives.
    """
    side = PEAK_SIDE.get(device.type, PEAK_SIDE["cpu"])
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    fastest = math.inf
    for _ in range(NUM_TRIALS):
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


NUM_BINS = 4  # of the timesteps below the last one, where one-step decoding starts


class Monitor:
    """Sums over the steps since the last `report`, on the run's device, so that nothing waits."""

    def __init__(
        self, accelerator: Accelerator, tasks: tuple[str, ...], terms: Sequence[str] = ()
    ) -> None:
        """`terms`: names of further curves, which `add_terms` fills."""
        self._accelerator, self._tasks = accelerator, tasks
        edges = [f"t{low / NUM_BINS:g}-{(low + 1) / NUM_BINS:g}" for low in range(NUM_BINS)]
        self._names = [*tasks, *edges, "t1", *terms]
        self._sums = torch.zeros(2, len(self._names), device=accelerator.device)  # losses, samples
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self._peak = matmul_peak(accelerator.device, dtype)  # FLOP/s
        self._flops_of: dict[Hashable, int] = {}  # of a step, by the shapes of its batch
        self._flops = 0
        self._started = time.monotonic()
        self._away_s = 0.0

    @contextmanager
    def step(self, shapes: Hashable) -> Iterator[None]:
        """Around a step, forward and backward, on batches of `shapes`: the first of each kind is
        counted, the others are as many FLOPs."""
        if shapes not in self._flops_of:
            with CountedFlops() as counted:
                yield
            if counted.flops:  # none: who learns later did nothing yet
                self._flops_of[shapes] = counted.flops
        else:
            yield
        self._flops += self._flops_of.get(shapes, 0)

    def add(
        self, task: str, losses: torch.Tensor, timestep: torch.Tensor | None, latest: float = 1.0
    ) -> None:
        """The `losses` `[B]` of a batch at `timestep` `[B]`; `latest` is where one step starts.

        None: of a model that has no timesteps.
        """
        values = torch.stack([losses.detach().float(), torch.ones_like(losses)])
        tasks = torch.full((len(losses),), self._tasks.index(task), device=losses.device)
        self._sums.index_add_(1, tasks, values)
        if timestep is None:
            return
        bins = (timestep * NUM_BINS / latest).long().clamp(max=NUM_BINS - 1)
        bins = torch.where(timestep >= latest, NUM_BINS, bins) + len(self._tasks)
        self._sums.index_add_(1, bins, values)

    def add_terms(self, terms: dict[str, torch.Tensor]) -> None:
        """Further numbers of a batch, each a mean over its samples."""
        for name, value in terms.items():
            self._sums[:, self._names.index(name)] += torch.stack([value, torch.ones_like(value)])

    def pause(self, seconds: float) -> None:
        """Time that was spent on something else than training."""
        self._away_s += seconds

    def report(self) -> dict[str, float]:
        """Mean losses and clips (or images) a second of all processes, which all must call this.

        `speed/utilization`: FLOPs of this process over those of so much time at its device's peak
        in matrix products. What did not occur is left out.
        """
        sums = self._accelerator.reduce(self._sums, "sum")
        losses, counts = sums.tolist()
        now = time.monotonic()
        elapsed_s = now - self._started - self._away_s
        values = {
            f"loss/{name}": loss / count
            for name, loss, count in zip(self._names, losses, counts, strict=True)
            if count
        }
        values["speed/clips_per_s"] = sum(counts[: len(self._tasks)]) / max(elapsed_s, 1e-9)
        if self._flops:
            speed = self._flops / max(elapsed_s, 1e-9)
            values |= {"speed/tflops": speed / 1e12, "speed/utilization": speed / self._peak}
        self._sums.zero_()
        self._flops = 0
        self._started, self._away_s = now, 0.0
        return values
