"""AdamW's parameter groups, Muon, and the learning rate of each iteration."""

import math
from collections.abc import Callable

import torch
from torch import nn

from regen.training.config import RunConfig

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


def learning_rate_factor(
    step: int, num_steps: int, warmup_steps: int, cooldown_fraction: float
) -> float:
    """The factor of the peak in iteration `step` (from 0) of `num_steps`.

    Choice: warm-up, plateau, linear fall to 0. The paper names AdamW and no schedule.
    """
    cooldown = max(1, int(num_steps * cooldown_fraction))
    return min((step + 1) / max(1, warmup_steps), (num_steps - step) / cooldown, 1.0)


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices (decayed) and vectors; or Muon.

    Each group carries its `scale` of the learning rate.
    """
    if config.optimizer == "muon":
        return _muon(model, config)
    trained = [one for one in model.parameters() if one.requires_grad]
    groups = [
        {
            "params": [one for one in trained if (one.ndim > 1) == is_matrix],
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "scale": 1.0,
        }
        for is_matrix in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def _muon(model: nn.Module, config: RunConfig) -> Muon:
    """Muon on the matrices of `blocks`, AdamW at half the rate on everything else.

    Choice: embedders are trained with Muon. At equal time pictures gained half as much again as
    with AdamW (docs/log.md).
    """
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    matrices = [one for name, one in trained if one.ndim > 1 and "blocks." in name]
    chosen = {id(one) for one in matrices}
    others = [one for _, one in trained if id(one) not in chosen]
    groups = [
        {"params": matrices, "muon": True, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": others, "muon": False, "weight_decay": 0.0, "scale": 0.5},
    ]
    return Muon(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def make_discriminator_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW on all of `module`.

    Choice: the discriminator's moments decay with 0 and 0.99, as MAGVIT's. The paper says AdamW.
    """
    group = {"params": list(module.parameters()), "weight_decay": 0.0, "scale": 1.0}
    return torch.optim.AdamW([group], lr=config.learning_rate, betas=(0.0, 0.99), fused=True)
