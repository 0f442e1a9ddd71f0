"""Model configurations: a table of presets, each a function that returns its model's arguments.

`regen_4x` .. `regen_32x` are the paper's size (B.3), `magvit_4x` .. `magvit_32x` its baseline
(B.2.1), `..._wide` with the decoder as wide as it takes to have REGEN's parameters (App. E).
`small_*` and `magvit_small_*` are the paper's comparison at a size that a CPU trains: the same
encoder, decoders of about the same cost. `..._in_context_8x` is the ablation of Tab. 3;
`small_full_8x` has full attention and no convolution in its blocks, so that nothing but the
conditioning tells a token where it is. `natural_32x` and `shapes_32x` are what the embedded weights
use.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

RATIOS = (4, 8, 16, 32)
PAPER_STRIDES: dict[int, tuple[tuple[int, int], ...]] = {
    # (time, space) after each stage.
    # Choice: time is halved as late as the stages allow. The paper gives the ratios, not the
    # places; early stages then see all frames.
    4: ((1, 2), (2, 2), (2, 2), (1, 1)),
    8: ((1, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
    16: ((2, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
    32: ((2, 2), (2, 2), (2, 2), (2, 1), (2, 1)),
}
# (latent frames of a chunk, width of the decoder's last stage, of the widened one of App. E)
PAPER_MAGVIT = {4: (5, 128, 0), 8: (3, 128, 0), 16: (2, 128, 272), 32: (2, 128, 312)}
SMALL_MAGVIT = {4: (5, 144, 0), 8: (3, 136, 0), 16: (2, 140, 280), 32: (2, 152, 304)}
# A decoder that trains on a CPU.
SMALL_DECODER = {
    "num_layers": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "mlp_ratio": 3.0,
    "mlp_conv": True,
    "attention_window": 4,
    "shared_modulation": True,
    "siren_width": 96,
}


def _paper(ratio: int, **changes: Any) -> dict[str, Any]:
    # Paper: B.3, base width 128, multipliers 1, 2, 4, 6 (, 6); 24 blocks, 16 heads, width 2048.
    # Choice: two residual blocks a stage; SIREN of 3 layers of 256. The paper gives no numbers.
    widths = (128, 256, 512, 768) if ratio == 4 else (128, 256, 512, 768, 768)
    return {
        "temporal_compression_ratio": ratio,
        "encoder_block_out_channels": widths,
        "encoder_strides": PAPER_STRIDES[ratio],
    } | changes


def _small_encoder(ratio: int) -> dict[str, Any]:
    halvings = ratio.bit_length() - 1
    return {
        "temporal_compression_ratio": ratio,
        "encoder_block_out_channels": (48,) * (halvings + 1),
        "encoder_layers_per_block": 1,
        "encoder_strides": ((2, 1),) * halvings + ((1, 1),),
        "encoder_patch_size": 8,
    }


def _small(ratio: int, **changes: Any) -> dict[str, Any]:
    return _small_encoder(ratio) | SMALL_DECODER | changes


def _natural() -> dict[str, Any]:
    """Natural video at 1 to 32x, content that moves: 6 M parameters, trains on a CPU."""
    return SMALL_DECODER | {
        "temporal_compression_ratio": 32,
        "encoder_block_out_channels": (128,) * 4,
        "encoder_layers_per_block": 1,
        "encoder_strides": ((2, 1), (2, 1), (2, 1), (1, 1)),
        "encoder_patch_size": 8,
        "encoder_time_patch_size": 4,
        "encoder_time_kernel": 1,
        "num_layers": 6,
        "moving_content": True,
    }


def _magvit(ratio: int, wide: bool = False) -> dict[str, Any]:
    # Paper: B.2.1, 17 frames to 5, 3, 2 latent frames; at 32x 33 frames to 2.
    latent_frames, *bases = PAPER_MAGVIT[ratio]
    encoder = _paper(ratio)
    multipliers = [width // 128 for width in encoder["encoder_block_out_channels"]]
    ups = tuple(reversed(encoder["encoder_strides"]))
    return encoder | {
        "latent_frames_per_chunk": latent_frames,
        "decoder_block_out_channels": tuple(bases[wide] * m for m in reversed(multipliers)),
        # Choice: MAGVIT-v2's decoder mirrors the encoder; at 32x each doubling follows its stage
        # instead of preceding it. The paper moves them towards the end there, to save memory, and
        # does not say how far.
        "decoder_strides": ((1, 1), *ups) if ratio == 32 else (*ups, (1, 1)),
    }


def _magvit_small(ratio: int, wide: bool = False) -> dict[str, Any]:
    latent_frames, *bases = SMALL_MAGVIT[ratio]
    encoder = _small_encoder(ratio)
    return encoder | {
        "latent_frames_per_chunk": latent_frames,
        "decoder_block_out_channels": (bases[wide],) * len(encoder["encoder_strides"]),
        "decoder_layers_per_block": 1,
        "decoder_strides": (*reversed(encoder["encoder_strides"]), (1, 1)),
        "decoder_patch_size": 8,
    }


Preset = Callable[[], dict[str, Any]]
FULL_ATTENTION = {"attention_window": None, "mlp_conv": False}
IN_CONTEXT = {"conditioning_type": "in_context"}

PRESETS: dict[str, Preset] = {
    **{f"regen_{ratio}x": partial(_paper, ratio) for ratio in RATIOS},
    "regen_in_context_8x": partial(_paper, 8, **IN_CONTEXT),
    "natural_32x": _natural,
    **{f"small_{ratio}x": partial(_small, ratio) for ratio in RATIOS},
    "shapes_32x": partial(_small, 32, num_attention_heads=3, mlp_ratio=2.5),
    "small_full_8x": partial(_small, 8, **FULL_ATTENTION),
    "small_in_context_8x": partial(_small, 8, **FULL_ATTENTION, **IN_CONTEXT),
}

MAGVIT_PRESETS: dict[str, Preset] = {
    **{f"magvit_{ratio}x": partial(_magvit, ratio) for ratio in RATIOS},
    **{f"magvit_{ratio}x_wide": partial(_magvit, ratio, wide=True) for ratio in (16, 32)},
    **{f"magvit_small_{ratio}x": partial(_magvit_small, ratio) for ratio in RATIOS},
    **{f"magvit_small_{ratio}x_wide": partial(_magvit_small, ratio, True) for ratio in (16, 32)},
}
