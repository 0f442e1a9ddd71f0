"""A run's state as one safetensors file: weights, averaged weights, optimiser moments, step. Nothing is pickled.

Files are written beside and renamed, so a kill at any moment leaves the last whole one.
"""

import os
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

PATTERN = "step_*.safetensors"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer, keep: int = 2
) -> Path:
    """Write `folder/step_XXXXXXXX.safetensors` and delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, shadow in zip((n for n, _ in model.named_parameters()), ema.shadow_params, strict=True):
        tensors[f"ema.{name}"] = shadow
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    path = folder / f"step_{step:08d}.safetensors"
    temporary = folder / f".{path.name}.tmp"
    contiguous = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"step": str(step), "ema_steps": str(ema.optimization_step)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    for old in sorted(folder.glob(PATTERN))[:-keep]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob(PATTERN), default=None)


def load_checkpoint(path: Path, model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer) -> int:
    """Restore everything in place and return the step. Raises ValueError where the file does not fit the model."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
        weights = {name[6:]: file.get_tensor(name) for name in names if name.startswith("model.")}
        expected = set(model.state_dict())
        if set(weights) != expected:
            different = sorted(set(weights) ^ expected)[:3]
            raise ValueError(f"{path} is of another model: it differs in {', '.join(different)}, ...")
        model.load_state_dict(weights)
        for (name, _), shadow in zip(model.named_parameters(), ema.shadow_params, strict=True):
            shadow.copy_(file.get_tensor(f"ema.{name}"))
        ema.optimization_step = int(metadata["ema_steps"])
        for name, parameter in model.named_parameters():
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer.{key}.{name}" in names:
                    value = file.get_tensor(f"optimizer.{key}.{name}")
                    state[key] = value if key == "step" else value.to(parameter.device)
            if state:
                optimizer.state[parameter] = state
    return int(metadata["step"])
