"""Configurations of `RegenTransformer3DModel` as functions. Width of the text, channels of the
latents and the usual size come with the data."""

from collections.abc import Callable
from typing import Any


def t2v_nano() -> dict[str, Any]:
    """3.5 M parameters: learns most in an hour or two of a CPU's core."""
    return t2v_tiny() | {"num_attention_heads": 2, "shared_noise": 0.5}


def t2v_tiny() -> dict[str, Any]:
    """14 M parameters, trains on a CPU on pictures of about 96 pixels."""
    return {
        "num_layers": 6,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "axes_dims_rope": (8, 8, 24, 24),
        # Choice: the tiny transformer's rotary positions have the base 100, where Flux has 10000.
        # Its pictures have few places.
        "rope_theta": 100.0,
    }


def t2v_1b() -> dict[str, Any]:
    """0.9 B parameters."""
    return {
        "num_layers": 24,
        "num_attention_heads": 16,
        "attention_head_dim": 64,
        "axes_dims_rope": (8, 8, 24, 24),
    }


def t2v_5b() -> dict[str, Any]:
    """5 B parameters, the paper's size (Sec. 4.2)."""
    # Choice: the 5 B model is 33 blocks of 16 heads of 128, the width of the paper's decoder. The
    # paper gives the size and the kind (MMDiT), no numbers.
    return {
        "num_layers": 33,
        "num_attention_heads": 16,
        "attention_head_dim": 128,
        "axes_dims_rope": (16, 16, 48, 48),
    }


GENERATOR_PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    preset.__name__: preset for preset in (t2v_nano, t2v_tiny, t2v_1b, t2v_5b)
}
