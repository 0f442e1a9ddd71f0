"""FLOPs of what really runs, and the most that this device gives.

Counted by operation, as it is dispatched: matrix products, convolutions, attention.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
NUM_TRIALS = 5
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed


def _attention_flops(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products of all pairs; shapes are `[B, heads, N, head_dim]`."""
    return 4 * math.prod(query) * key[2]


def _attention_backward_flops(
    _: Any, query: Sequence[int], key: Sequence[int], *__: Any, **___: Any
) -> int:
    """Five products: the scores again, and four gradients."""
    return 10 * math.prod(query) * key[2]


def _convolution_backward_flops(
    gradient: Sequence[int],
    _: Any,
    weight: Sequence[int],
    *rest: Any,
    **__: Any,
) -> int:
    """As much as the forward pass for each gradient; right for groups, unlike the library's."""
    output_mask = rest[7]
    products = math.prod(weight) * gradient[0] * math.prod(gradient[2:])
    return 2 * products * sum(output_mask[:2])


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    aten.convolution_backward: _convolution_backward_flops,
}


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
