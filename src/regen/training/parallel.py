"""Several processes, from outside: the model's code is that of one process.

DDP is accelerate's; sharding is PyTorch's FSDP2, as accelerate's has no policy by block and no CPU.
"""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from regen.models.autoencoder import AutoencoderREGEN
from regen.training.config import TrainConfig
from regen.training.objective import REGENObjective

PATIENCE = timedelta(hours=3)  # processes wait that long for the one that decodes, solves, exports


def make_accelerator(config: TrainConfig) -> Accelerator:
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


def parallelize(objective: nn.Module, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """`objective` on its device, ready for the processes of the run; changes it in place.

    In this order: recomputation, compilation of blocks, sharding.
    """
    if config.gradient_checkpointing and hasattr(objective, "model"):
        objective.model.enable_gradient_checkpointing()  # type: ignore[operator, union-attr]
    if config.compile_blocks and isinstance(objective, REGENObjective):
        objective.model.compile_repeated_blocks(dynamic=False)
    if config.shard:
        assert isinstance(objective, REGENObjective)
        shard(objective, accelerator, config.mixed_precision)
        return objective
    wrapped: nn.Module = accelerator.prepare_model(objective)
    return torch.compile(wrapped, dynamic=False) if config.compile else wrapped  # type: ignore


def shard(objective: REGENObjective, accelerator: Accelerator, mixed_precision: str) -> None:
    """FSDP2: each block, then what is left; every process keeps its part of each tensor.

    Blocks are gathered in bfloat16 where matrix products are; gradients are summed in float32; what
    is not in a block (the shortcuts, for one) stays float32.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    of_blocks = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed_precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for module in objective.modules():
        if type(module).__name__ in AutoencoderREGEN._no_split_modules:
            fully_shard(module, mesh=mesh, mp_policy=of_blocks)
    # Resharded at once, as all others: a validation changes the weights without a backward pass.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(objective, "reconstruct")


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
