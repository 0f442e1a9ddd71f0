"""Averaged weights: in place for a validation, gathered for an export; sharded as the model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from regen.training.parallel import local, whole


def make_averages(model: nn.Module, decay: float) -> EMAModel:
    """Averages of the parameters of `model`, each process of those that it holds.

    Choice: averaged weights are what is validated and exported. They are smoother than the last.
    """
    return EMAModel(model.parameters(), decay=decay, use_ema_warmup=True, power=0.75)


def _swap(model: nn.Module, averages: EMAModel) -> None:
    for parameter, shadow in zip(model.parameters(), averages.shadow_params, strict=True):
        before = local(parameter).clone()
        local(parameter).copy_(local(shadow))
        local(shadow).copy_(before)


@contextmanager
def averaged_weights(model: nn.Module, averages: EMAModel) -> Iterator[None]:
    """Within this context the parameters of `model` are the averages."""
    _swap(model, averages)
    try:
        yield
    finally:
        _swap(model, averages)


def gather_averages(model: nn.Module, averages: EMAModel, keep: bool) -> dict[str, torch.Tensor]:
    """State of `model` with the averages for parameters, on the CPU; empty where not `keep`.

    Every process must call this: one tensor after the other is put together.
    """
    state = {name: tensor for name, tensor in model.state_dict().items()}
    for (name, _), shadow in zip(model.named_parameters(), averages.shadow_params, strict=True):
        state[name] = shadow
    gathered = {}
    for name, tensor in state.items():
        full = whole(tensor)
        if keep:
            gathered[name] = full.cpu()
    return gathered
