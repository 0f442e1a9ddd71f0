"""A run's state as one safetensors file: weights, averaged weights, optimiser moments, step.

Nothing is pickled. Files are written beside and renamed, so a kill at any moment leaves the last
whole one.
"""

import os
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

PATTERN = "step_*.safetensors"
OPTIMIZER_KEYS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    elapsed_s: float = 0.0,
    keep: int = 2,
) -> Path:
    """Write `folder/step_XXXXXXXX.safetensors` and delete all but the newest `keep`.

    `elapsed_s`: seconds of training so far, over all its pieces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    for name, shadow in zip(names, ema.shadow_params, strict=True):
        tensors[f"ema.{name}"] = shadow
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    metadata = {
        "step": str(step),
        "ema_steps": str(ema.optimization_step),
        "elapsed_s": f"{elapsed_s:.1f}",
    }
    path = folder / f"step_{step:08d}.safetensors"
    for leftover in folder.glob(f".{PATTERN}.tmp"):
        leftover.unlink()
    temporary = folder / f".{path.name}.tmp"
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, temporary, metadata=metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    for old in sorted(folder.glob(PATTERN))[:-keep]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and the damaged ones newer than it.

    The damaged ones are renamed to `....damaged`, so that they no longer count as checkpoints.
    """
    damaged: list[Path] = []
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            with safe_open(path, framework="pt") as file:
                is_whole = "step" in (file.metadata() or {})
        except SafetensorError:  # the header tells the file's length, so a truncated one fails here
            is_whole = False
        if is_whole:
            return path, damaged
        damaged.append(path.rename(path.with_name(f"{path.name}.damaged")))
    return None, damaged


def load_checkpoint(
    path: Path, model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Restore everything in place; returns the step and the seconds of training before it.

    Raises ValueError where the file does not fit the model.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
        weights = {name[6:]: file.get_tensor(name) for name in names if name.startswith("model.")}
        expected = model.state_dict()
        different = set(weights) ^ set(expected)
        different |= {
            name
            for name in weights
            if name in expected and weights[name].shape != expected[name].shape
        }
        different |= {name for name, _ in model.named_parameters() if f"ema.{name}" not in names}
        if different:
            some = ", ".join(sorted(different)[:3])
            raise ValueError(f"{path} is of another model: it differs in {some}, ...")
        model.load_state_dict(weights)
        for (name, _), shadow in zip(model.named_parameters(), ema.shadow_params, strict=True):
            shadow.copy_(file.get_tensor(f"ema.{name}"))
        ema.optimization_step = int(metadata["ema_steps"])
        for name, parameter in model.named_parameters():
            state = {}
            for key in OPTIMIZER_KEYS:
                if f"optimizer.{key}.{name}" in names:
                    value = file.get_tensor(f"optimizer.{key}.{name}")
                    state[key] = value if key == "step" else value.to(parameter.device)
            if state:  # none: a parameter that no batch has needed yet
                optimizer.state[parameter] = state
    return int(metadata["step"]), float(metadata.get("elapsed_s", 0))
