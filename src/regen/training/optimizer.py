"""AdamW's parameter groups and the learning rate of each iteration."""

import torch
from torch import nn

from regen.models.autoencoder import AutoencoderREGEN
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
    """AdamW in three groups: matrices (decayed), vectors, layers that shortcuts start solved.

    Each group carries its `scale` of the learning rate.
    Choice: the linear decoder and the encoder's last layer learn at a tenth of the rate. They start
    at an optimum, the latents of motion-compensated coding.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    solved: list[nn.Parameter] = []
    has_shortcuts = isinstance(model, AutoencoderREGEN) and model.shortcut is not None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if has_shortcuts and name.startswith(("linear_decoder", "encoder.conv_out")):
            solved.append(parameter)
        else:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    if config.optimizer == "muon":
        return _muon(model, config)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": solved, "weight_decay": 0.0, "scale": 0.1},
    ]
    groups = [group for group in groups if group["params"]]
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
