"""Several processes from outside, and what ends a run early: signals, failures.

The model's code is that of one process. DDP is accelerate's; sharding is PyTorch's FSDP2, as
accelerate's has no policy by block and no CPU.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn
from torch.distributed import DistError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from regen.training.config import RunConfig

PATIENCE = timedelta(hours=3)  # processes wait that long for the one that decodes, solves, exports


def make_accelerator(config: RunConfig) -> Accelerator:
    """This process among those of the run. Raises ValueError for a launch that cannot work."""
    num_launched = int(os.environ.get("WORLD_SIZE", 1))
    trackers = [str(getattr(one, "value", one)) for one in get_available_trackers()]
    if config.tracker not in (*trackers, "none"):
        raise ValueError(
            f"--tracker is one of {', '.join(trackers)} (those installed) or none, "
            f"got {config.tracker!r}"
        )
    accelerator = Accelerator(
        cpu=num_launched > 1 and not torch.cuda.is_available(),  # else each would be alone
        mixed_precision=config.mixed_precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_config=ProjectConfiguration(
            project_dir=str(config.output), logging_dir=str(config.output / "logs")
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU") or accelerator.num_processes != num_launched:
        raise ValueError(
            f"{num_launched} processes were launched as {kind}: launch plain ones (no --use_fsdp, "
            "no --use_deepspeed); --shard of regen train splits the model among them"
        )
    if config.shard and accelerator.num_processes == 1:
        raise ValueError("--shard takes several processes: accelerate launch --num_processes N ...")
    return accelerator


def parallelize(
    objective: nn.Module,
    model: ModelMixin,
    other_forwards: tuple[str, ...],
    config: RunConfig,
    accelerator: Accelerator,
) -> nn.Module:
    """`objective` on its device, ready for the processes of the run; changes it in place.

    `model` is the one within; `other_forwards` are the methods of `objective` that a validation
    calls. In this order: recomputation, compilation of blocks, sharding.
    """
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.compile_blocks:
        model.compile_repeated_blocks(dynamic=False)
    if config.shard:
        shard(objective, model._no_split_modules, accelerator, config.mixed_precision)
        for name in other_forwards:
            register_fsdp_forward_method(objective, name)
        return objective
    wrapped: nn.Module = accelerator.prepare_model(objective)
    return torch.compile(wrapped, dynamic=False) if config.compile else wrapped  # type: ignore


def shard(
    objective: nn.Module, blocks: Sequence[str], accelerator: Accelerator, mixed_precision: str
) -> None:
    """FSDP2: each module of the classes `blocks`, then what is left.

    Every process keeps its part of each tensor. Blocks are gathered in bfloat16 where matrix
    products are; gradients are summed in float32; what is not in a block (the shortcuts, for one)
    stays float32.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    of_blocks = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed_precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for module in objective.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, mp_policy=of_blocks)
    # Resharded at once, as all others: a validation changes the weights without a backward pass.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of `tensor`, sharing its memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of `tensor`, on every process that calls this, which all must."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def broadcast_module(module: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main process' weights of `module`."""
    for tensor in module.state_dict().values():
        tensor.copy_(broadcast(tensor.to(accelerator.device)))


def mean(value: torch.Tensor | float, accelerator: Accelerator) -> float:
    """Mean over processes, which all must call this."""
    if accelerator.num_processes == 1:
        return float(value)
    number = torch.as_tensor(value, dtype=torch.float32, device=accelerator.device)
    return float(accelerator.reduce(number.detach().clone(), "mean"))


def anywhere(flag: bool, accelerator: Accelerator) -> bool:
    """Whether `flag` is set on any process; all must call this."""
    return mean(float(flag), accelerator) > 0


def everywhere(flag: bool, accelerator: Accelerator) -> bool:
    """Whether `flag` is set on every process; all must call this."""
    return not anywhere(not flag, accelerator)


# -- what ends a run early -----------------------------------------------------------------------

LEAVE_S = 60
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within this context a first signal only sets `received`; a second one acts as it always does.

    Signals reach the main thread alone: elsewhere, and for those that are ignored (nohup in a
    script), nothing changes. Under a launcher a second one does nothing either: it is the first,
    passed on (and the launcher itself does not wait long).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_launched = "LOCAL_RANK" in os.environ
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            once_more = "" if self.is_launched else "; once more to stop without a checkpoint"
            os.write(2, f"\nstopping after this step{once_more}\n".encode())
        self.received = number
        if not self.is_launched:
            self.__exit__()

    def raise_received(self) -> None:
        """KeyboardInterrupt after Ctrl-C, SystemExit (status 143) after SIGTERM, else nothing."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)


def ignore_signals(_: int) -> None:
    """For processes that prepare batches: signals to the whole group reach them too.

    They end with the run, or within seconds of its death (PyTorch's watchdog).
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def left_in_time(num_processes: int) -> Iterator[None]:
    """After a failure end this process within LEAVE_S.

    One of several would wait for the dead ones for hours, even as it exits.
    """
    try:
        yield
    except BaseException:
        if num_processes > 1:
            signal.alarm(LEAVE_S)
        raise


@contextmanager
def failures_in_one_line() -> Iterator[None]:
    """ValueError, one line, for what can go wrong around the computation.

    A full disk, a process that prepares batches and dies or cannot read a clip, too little memory.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        text = str(error)
        if " in DataLoader worker process " in text:  # with its traceback; the last line says it
            _, _, text = text.strip().splitlines()[-1].partition(": ")
        elif "DataLoader worker" in text:
            text = "a process that prepares batches died (killed, perhaps for its memory)"
        elif isinstance(error, RuntimeError) and "out of memory" in text:
            text = "out of memory: try --gradient-checkpointing, or smaller batches and crops"
        elif isinstance(error, DistError) or "by peer" in text:  # NCCL's, gloo's
            text = "another process of the run died; what it printed may say why"
        elif not isinstance(error, (OSError, SafetensorError)):
            raise
        raise ValueError(
            f"{text}; the same command resumes from the last checkpoint, which is intact"
        ) from error
