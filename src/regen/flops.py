"""FLOPs of attention and of convolutions' gradients, which torch's counter lacks or has wrong."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any) -> int:
    """Two products of all pairs; shapes are `[B, heads, N, head_dim]`."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward(_: Any, query: Sequence[int], key: Sequence[int], *__: Any) -> int:
    """Five products: the scores again, and four gradients."""
    return 10 * math.prod(query) * key[2]


def _convolution_backward(
    gradient: Sequence[int], _: Any, weight: Sequence[int], *rest: Any
) -> int:
    """As much as the forward pass for each gradient; right for groups, unlike the library's."""
    products = math.prod(weight) * gradient[0] * math.prod(gradient[2:])
    return 2 * products * sum(rest[7][:2])  # output mask


def _without_options(formula: Callable[..., int]) -> Callable[..., int]:
    return lambda *shapes, **_: formula(*shapes)


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _without_options(_attention),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _without_options(
        _attention_backward
    ),
    aten.convolution_backward: _without_options(_convolution_backward),
}
