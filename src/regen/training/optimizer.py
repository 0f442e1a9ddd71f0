"""AdamW's parameter groups and the learning rate of each iteration."""

import torch
from torch import nn

from regen.training.config import RunConfig
from regen.training.muon import Muon


def learning_rate_factor(
    step: int, num_steps: int, warmup_steps: int, cooldown_share: float
) -> float:
    """The factor of the peak in iteration `step` (from 0) of `num_steps`.

    Choice: warm-up, plateau, linear fall to 0. The paper names AdamW and no schedule.
    """
    cooldown = max(1, int(num_steps * cooldown_share))
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
