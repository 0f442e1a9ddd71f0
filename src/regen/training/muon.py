"""Muon (Jordan et al., 2024): steps of matrices with all their singular values made equal.

`torch.optim.Muon` exists from PyTorch 2.9 and takes matrices only, not convolutions.
"""

import math
from collections.abc import Callable

import torch

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a polynomial that pulls singular values towards 1
NUM_ITERATIONS = 5
UPDATE_SCALE = 0.2  # root mean square of a step of length 1, as AdamW's (Liu et al., 2025)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """`[m, n]` -> about the nearest matrix with orthonormal rows or columns, bfloat16."""
    a, b, c = NEWTON_SCHULZ
    result = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    if matrix.shape[0] > matrix.shape[1]:
        result = result.T
    for _ in range(NUM_ITERATIONS):
        square = result @ result.T
        result = a * result + (b * square + c * square @ square) @ result
    return result.T if matrix.shape[0] > matrix.shape[1] else result


class Muon(torch.optim.AdamW):
    """Groups with `"muon": True` hold parameters of two or more dimensions; the others are AdamW's.

    A convolution is the matrix `[out, in * taps]`. The learning rate is on AdamW's scale.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            if not group.get("muon"):
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg"].lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(state["exp_avg"], MOMENTUM).flatten(1)
                step = UPDATE_SCALE * math.sqrt(max(ahead.shape)) * orthogonalize(ahead)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.view_as(parameter).to(parameter.dtype), alpha=-group["lr"])
                parameter.grad = None  # so that AdamW passes it by
        return super().step(closure)
