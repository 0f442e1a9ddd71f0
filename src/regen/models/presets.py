"""Model configurations as functions; each returns the arguments of `AutoencoderREGEN`.

`regen_4x` .. `regen_32x` are the paper's size (B.3). The tiny ones are what the embedded weights
use.
"""

from collections.abc import Callable
from typing import Any

PAPER_STRIDES: dict[int, tuple[tuple[int, int], ...]] = {
    # (time, space) after each stage.
    # Choice: time is halved as late as the stages allow. The paper gives the ratios, not the
    # places; early stages then see all frames.
    4: ((1, 2), (2, 2), (2, 2), (1, 1)),
    8: ((1, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
    16: ((2, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
    32: ((2, 2), (2, 2), (2, 2), (2, 1), (2, 1)),
}


def _paper(ratio: int) -> dict[str, Any]:
    # Paper: B.3, base width 128, multipliers 1, 2, 4, 6 (, 6); 24 blocks, 16 heads, width 2048.
    # Choice: two residual blocks a stage; SIREN of 3 layers of 256. The paper gives no numbers.
    widths = (128, 256, 512, 768) if ratio == 4 else (128, 256, 512, 768, 768)
    return {
        "temporal_compression_ratio": ratio,
        "encoder_block_out_channels": widths,
        "encoder_strides": PAPER_STRIDES[ratio],
    }


def regen_4x() -> dict[str, Any]:
    return _paper(4)


def regen_8x() -> dict[str, Any]:
    return _paper(8)


def regen_16x() -> dict[str, Any]:
    return _paper(16)


def regen_32x() -> dict[str, Any]:
    return _paper(32)


def tiny_8x() -> dict[str, Any]:
    """About 7 M parameters, trains on a CPU: patch stem, windows of 4 x 4 places, shortcuts."""
    return {
        "temporal_compression_ratio": 8,
        "encoder_block_out_channels": (48, 48, 48, 48),
        "encoder_layers_per_block": 1,
        "encoder_strides": ((2, 1), (2, 1), (2, 1), (1, 1)),
        "encoder_patch_size": 8,
        "num_layers": 5,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "mlp_ratio": 3.0,
        "mlp_conv": True,
        "attention_window": 4,
        "shared_modulation": True,
        "siren_width": 96,
        "motion_shortcut": True,
    }


def tiny_32x() -> dict[str, Any]:
    """`tiny_8x` for chunks of 33 frames: two more halvings of time, at less width."""
    return tiny_8x() | {
        "temporal_compression_ratio": 32,
        "encoder_block_out_channels": (32,) * 6,
        "encoder_strides": ((2, 1), (2, 1), (2, 1), (2, 1), (2, 1), (1, 1)),
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    preset.__name__: preset
    for preset in (regen_4x, regen_8x, regen_16x, regen_32x, tiny_8x, tiny_32x)
}
