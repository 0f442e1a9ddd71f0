"""What one training step computes and holds in memory, counted without computing anything.

The objective runs forward and backward on fake tensors, which have a shape, a dtype and a size in
bytes and no values; every operation is seen on its way. What is counted is of the code that trains,
not of a formula beside it. bfloat16 autocast, as in training.
"""

import gc
import math
import weakref
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from regen.chunking import PATCH
from regen.flops import FORMULAS
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.motion import GRID, NEXT_CELL, NUM_TERMS
from regen.model.moving_objective import MovingObjective
from regen.model.objective import Inputs, ObjectiveConfig, REGENObjective

aten = torch.ops.aten


@dataclass(frozen=True)
class StepShape:
    """A batch: images where `is_image`, else whole chunks with `num_targets` frames to predict."""

    batch_size: int
    height: int
    width: int
    num_targets: int
    is_image: bool = False


@dataclass(frozen=True)
class StepCost:
    """FLOPs and bytes of one step on one device, weights and optimiser not among the latter.

    `flops`: matrix products, convolutions and attention, forward and backward, with what
    checkpointing computes again. `saved_bytes`: what the forward pass leaves for the backward pass,
    without `copies_bytes`, the weights in bfloat16. `peak_bytes`: the most that is held at once, by
    the gradients so far as well; `activation_peak_bytes`: without gradients and copies.
    """

    flops_forward: int
    flops: int
    saved_bytes: int
    copies_bytes: int
    peak_bytes: int
    activation_peak_bytes: int


def step_cost(
    config: dict[str, Any],
    shape: StepShape,
    gradient_checkpointing: bool = False,
    on_gpu: bool = True,
) -> StepCost:
    """The cost of a step of the model `config` (arguments of `AutoencoderREGEN`).

    `on_gpu`: with the kernels and precisions of a CUDA device, which need not be there.
    """
    norms = gpu_norms() if on_gpu else nullcontext()
    memory, counter = LiveBytes(), FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with torch.device("meta"):
        model = AutoencoderREGEN(**config).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if on_gpu:
            for module in model.modules():
                if isinstance(module, AttentionModuleMixin):
                    module.set_processor(FlashAttention())
        kind = REGENObjective if model.linear is None else MovingObjective
        objective = kind(model, ObjectiveConfig())
        memory.ignore(model)
        batch = fake_batch(model, shape)
        gc.collect()
        gc.freeze()  # so that collecting in between is quick
        with norms, counter, memory:
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(**batch).mean()
            flops_forward = counter.get_total_flops()
            saved = memory.mark()
            if gradient_checkpointing:  # its fake tensors are left in cycles, real ones are not
                memory.limit = memory.live
            loss.backward()
        gradients = {memory.key(p.grad) for p in model.parameters() if p.grad is not None}
    gc.unfreeze()
    copies = memory.copies
    return StepCost(
        flops_forward=flops_forward,
        flops=counter.get_total_flops(),
        saved_bytes=memory.live_at(saved, without=copies),
        copies_bytes=memory.live_at(saved) - memory.live_at(saved, without=copies),
        peak_bytes=memory.peak(),
        activation_peak_bytes=memory.peak(without=copies | gradients),
    )


def fake_batch(model: AutoencoderREGEN, shape: StepShape) -> Inputs:
    """What the objective's `prepare` gives; of moving content with all that a store knows."""
    size, picture = shape.batch_size, (shape.height, shape.width)
    num_frames = 1 if shape.is_image else model.geometry.chunk_length
    num_targets = 1 if shape.is_image else shape.num_targets
    shapes: dict[str, tuple[int, ...]] = {
        "chunk": (size, 3, num_frames, *picture),
        "target": (size, 3, num_targets, *picture),
        "frame_times": (size, num_targets),
        "noise": (size, 3, num_targets, *picture),
        "timestep": (size,),
    }
    if model.linear is not None:
        size_in_latents = [side // PATCH for side in picture]
        shapes["latent_noise"] = (size, model.config["latent_channels"], 2, *size_in_latents)
        if not shape.is_image:
            cells = [-(-side // GRID) for side in picture]
            shapes["motion"] = (size, 2 * NUM_TERMS, *cells)
            shapes["following"] = (size, 3, *picture)
            shapes["to_first"] = (size, 2, *(GRID // NEXT_CELL * count for count in cells))
    return {name: torch.zeros(one) for name, one in shapes.items()}


class LiveBytes(TorchDispatchMode):
    """Records when each storage that an operation makes comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (key of a storage, bytes that come or go)
        self.copies: set[int] = set()  # keys of weights in another precision
        self.keys: dict[int, int] = {}  # of the storages alive, by id
        self.weights: set[int] = set()  # ids of their storages
        self.count = 0
        self.live, self.limit = 0, math.inf  # bytes; above the limit cycles are collected first

    def ignore(self, model: torch.nn.Module) -> None:
        """The model's own weights are counted elsewhere."""
        self.weights = {id(p.untyped_storage()) for p in model.parameters()}

    def key(self, tensor: torch.Tensor) -> int:
        return self.keys[id(tensor.untyped_storage())]

    def mark(self) -> int:
        return len(self.events)

    def live_at(self, mark: int, without: AbstractSet[int] = frozenset()) -> int:
        return sum(size for key, size in self.events[:mark] if key not in without)

    def peak(self, without: AbstractSet[int] = frozenset()) -> int:
        live = largest = 0
        for key, size in self.events:
            if key not in without:
                live += size
                largest = max(largest, live)
        return largest

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = func is aten._to_copy.default and id(args[0].untyped_storage()) in self.weights
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, is_copy)
        return result

    def _see(self, tensor: torch.Tensor, is_copy: bool) -> None:
        storage = tensor.untyped_storage()
        name = id(storage)
        if name in self.keys or name in self.weights:
            return
        key, size = self.count, storage.nbytes()
        self.count += 1
        if self.live + size > self.limit:
            gc.collect()
            self.limit = max(self.limit, 1.02 * (self.live + size))
        self.live += size
        self.keys[name] = key
        self.events.append((key, size))
        if is_copy:
            self.copies.add(key)

        def goes() -> None:
            self.events.append((key, -size))
            self.live -= size
            del self.keys[name]

        weakref.finalize(storage, goes)


class FusedRMSNorm(torch.autograd.Function):
    """Keeps what the fused kernel keeps: its input, its weight, a number a row."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight, rows[..., :1].clone())
        return torch.empty_like(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, weight, _ = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weight)


def gpu_norms() -> AbstractContextManager[Any]:
    """CUDA's autocast takes norms to float32, where the CPU's leaves them in bfloat16."""
    layer_norm = F.layer_norm

    def wide_layer_norm(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return layer_norm(rows.float(), *args, **kwargs)

    def wide_rms_norm(
        rows: torch.Tensor, shape: Sequence[int], weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return FusedRMSNorm.apply(rows.float(), weight.float())

    return mock.patch.multiple(F, layer_norm=wide_layer_norm, rms_norm=wide_rms_norm)


class FlashAttention:
    """The attention kernel of a CUDA device: no scores are kept."""

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`[B, N, heads, head_dim]` each -> the same shape."""
        heads = [tensor.to(torch.bfloat16).transpose(1, 2) for tensor in (query, key, value)]
        return aten._scaled_dot_product_flash_attention(*heads)[0].transpose(1, 2)
