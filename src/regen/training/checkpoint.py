"""A run's state as safetensors: weights, averaged weights, optimiser moments, step.

Whole tensors are one file, `step_XXXXXXXX.safetensors`. Sharded ones are a folder `step_XXXXXXXX`
with a file of each process: its pieces, whose places in the whole its metadata tells. Any number of
processes reads either, each what it needs. Nothing is pickled. All is written beside, and one
rename makes it a checkpoint: a kill at any moment leaves the last whole one.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from regen.training.distributed import local, whole

NAME = re.compile(r"step_(\d{8,})(\.safetensors)?")
Learner = tuple[nn.Module, torch.optim.Optimizer]  # another one, its state under a prefix
OPTIMIZER_KEYS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's


def local_piece(tensor: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """What this process holds of `tensor`, and where in the whole it begins."""
    offset = [0] * tensor.ndim
    if not isinstance(tensor, DTensor):
        return tensor.detach(), offset
    assert tensor.device_mesh.ndim == 1 and tensor.placements[0].is_shard()
    dim, mesh = tensor.placements[0].dim, tensor.device_mesh  # type: ignore[attr-defined]
    fraction = -(-tensor.shape[dim] // mesh.size())  # as torch.chunk: the last ones have less
    offset[dim] = min(mesh.get_local_rank() * fraction, tensor.shape[dim])
    return tensor.to_local().detach(), offset


def _state(
    model: nn.Module, optimizer: torch.optim.Optimizer, prefix: str = ""
) -> dict[str, torch.Tensor]:
    tensors = {f"{prefix}model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{prefix}optimizer.{key}.{name}"] = torch.as_tensor(value)
    return tensors


def _averages(model: nn.Module, ema: EMAModel) -> dict[str, torch.Tensor]:
    pairs = zip(model.named_parameters(), ema.shadow_params, strict=True)
    return {f"ema.{name}": shadow for (name, _), shadow in pairs}


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    elapsed_s: float = 0.0,
    keep_last: int = 2,
    keep_every: int = 0,
    rank: int = 0,
    all_agree: Callable[[bool], bool] = bool,
    others: dict[str, Learner] | None = None,
) -> Path:
    """Write the checkpoint of `step` in `folder`; every process of the run calls this.

    Deletes all but the newest `keep_last` and those of every `keep_every` steps (0: none).
    `elapsed_s`: seconds of training so far, over all its pieces. `all_agree`: whether every process
    says yes; waits for them. `others`: who else learns, such as a discriminator, by name. Raises
    ValueError where it cannot be written; nothing is left of it.
    """
    tensors = _state(model, optimizer) | _averages(model, ema)
    for other, learner in (others or {}).items():
        tensors |= _state(*learner, prefix=f"{other}.")
    is_sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    path = folder / (f"step_{step:08d}" if is_sharded else f"step_{step:08d}.safetensors")
    temporary = folder / f".{path.name}.tmp"
    metadata = {
        "step": str(step),
        "ema_steps": str(ema.optimization_step),
        "elapsed_s": f"{elapsed_s:.1f}",
    }
    reason = ""
    try:
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step_*.tmp"):
                _remove(leftover)
            if is_sharded:
                temporary.mkdir()
    except OSError as error:
        reason = str(error)
    if all_agree(not reason):
        try:
            if is_sharded:
                _write(temporary / f"rank_{rank:05d}.safetensors", *_own(tensors, metadata, rank))
            elif rank == 0:
                _write(temporary, tensors, metadata)
        except (OSError, SafetensorError) as error:
            reason = str(error)
    if not all_agree(not reason):
        if rank == 0:
            _remove(temporary)
        raise ValueError(
            f"the checkpoint {path} cannot be written ({reason or 'another process said why'}): "
            "make room and run the same command again, the checkpoint before it is intact"
        )
    if rank == 0:
        temporary.replace(path)
        _sync(folder)
        for old in checkpoints(folder)[:-keep_last]:
            if not (keep_every and step_of(old) % keep_every == 0):
                _remove(old)
    return path


def _own(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(this rank's pieces, metadata with their places); rank 0 also has what is not sharded."""
    own, places, size = {}, {}, 1
    for name, tensor in tensors.items():
        piece, offset = local_piece(tensor)
        if isinstance(tensor, DTensor):
            size = tensor.device_mesh.size()
            places[name] = {"offset": offset, "shape": list(tensor.shape)}
        if rank == 0 or (isinstance(tensor, DTensor) and piece.numel()):
            own[name] = piece
    return own, metadata | {"num_files": str(size), "places": json.dumps(places)}


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, metadata=metadata)
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """A file or folder; a folder first loses its name, so that no half of it is taken for one."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.tmp"))
    shutil.rmtree(doomed)


def step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, by step."""
    return sorted(
        (path for path in folder.glob("step_*") if NAME.fullmatch(path.name)), key=step_of
    )


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("rank_*.safetensors")) if path.is_dir() else [path]


def _is_whole(path: Path) -> bool:
    files = _files(path)
    try:
        for one in files:  # the header tells the file's length, so a truncated one fails here
            with safe_open(one, framework="pt") as file:
                metadata = file.metadata() or {}
            if "step" not in metadata or int(metadata.get("num_files", 1)) != len(files):
                return False
    except (SafetensorError, OSError):
        return False
    return bool(files)


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and the damaged ones newer than it.

    The damaged ones are renamed to `....damaged`, so that they no longer count as checkpoints.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        if _is_whole(path):
            return path, damaged
        damaged.append(path.rename(path.with_name(f"{path.name}.damaged")))
    return None, damaged


class _Reader:
    """The tensors of a checkpoint's files, by name: each whole, or in pieces with a place."""

    def __init__(self, files: list[Any]) -> None:
        self.metadata: dict[str, str] = files[0].metadata()
        self.shapes: dict[str, list[int]] = {}
        self._pieces: dict[str, list[tuple[Any, list[int], list[int]]]] = {}
        for file in files:
            places = json.loads(file.metadata().get("places", "{}"))
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                place = places.get(name, {"offset": [0] * len(shape), "shape": shape})
                self.shapes[name] = place["shape"]
                self._pieces.setdefault(name, []).append((file, place["offset"], shape))

    def names(self, prefix: str) -> set[str]:
        return {name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)}

    def copy_into(self, tensor: torch.Tensor, name: str) -> None:
        """Fill what this process holds of `tensor`."""
        local, start = local_piece(tensor)
        if not local.ndim:
            local.copy_(self._pieces[name][0][0].get_tensor(name))
            return
        for file, offset, shape in self._pieces[name]:
            source, target = [], []
            for here, size, there, length in zip(start, local.shape, offset, shape, strict=True):
                low, high = max(here, there), min(here + size, there + length)
                source.append(slice(low - there, max(low, high) - there))
                target.append(slice(low - here, max(low, high) - here))
            if all(one.start < one.stop for one in source):
                local[tuple(target)] = file.get_slice(name)[tuple(source)].to(local)


def _tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, names: AbstractSet[str], prefix: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint fills; optimiser states are made where `names` has them."""
    for name, tensor in model.state_dict().items():
        yield f"{prefix}model.{name}", tensor
    for name, parameter in model.named_parameters():
        state: dict[str, torch.Tensor] = {}
        for key in OPTIMIZER_KEYS:
            full_name = f"{prefix}optimizer.{key}.{name}"
            if full_name in names:
                state[key] = torch.tensor(0.0) if key == "step" else torch.zeros_like(parameter)
                yield full_name, state[key]
        if state:  # none: a parameter that no batch has needed yet
            optimizer.state[parameter] = state


@torch.no_grad()
def load_checkpoint(
    path: Path,
    model: nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    others: dict[str, Learner] | None = None,
) -> tuple[int, float]:
    """Restore everything in place; returns the step and the seconds of training before it.

    Every process reads what it holds. Raises ValueError where the file does not fit the model.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(one, framework="pt")) for one in _files(path)]
        reader = _Reader(files)
        learners = {"": (model, optimizer)} | {f"{o}.": one for o, one in (others or {}).items()}
        different = {name for name, _ in model.named_parameters()} - reader.names("ema.")
        for prefix, (learner, _) in learners.items():
            expected = learner.state_dict()
            stored = reader.names(f"{prefix}model.")
            different |= stored ^ set(expected)
            different |= {
                name
                for name in stored & set(expected)
                if reader.shapes[f"{prefix}model.{name}"] != list(expected[name].shape)
            }
        if different:
            some = ", ".join(sorted(different)[:3])
            raise ValueError(f"{path} is of another model: it differs in {some}, ...")
        for name, tensor in _averages(model, ema).items():
            reader.copy_into(tensor, name)
        for prefix, (learner, its_optimizer) in learners.items():
            for name, tensor in _tensors_of(learner, its_optimizer, set(reader.shapes), prefix):
                reader.copy_into(tensor, name)
        ema.optimization_step = int(reader.metadata["ema_steps"])
        return int(reader.metadata["step"]), float(reader.metadata.get("elapsed_s", 0))


# -- averaged weights ------------------------------------------------------------------------------


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
