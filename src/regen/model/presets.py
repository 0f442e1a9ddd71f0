"""Model configurations as functions; each returns the arguments of its model class.

`regen_4x` .. `regen_32x` are the paper's size (B.3), `magvit_4x` .. `magvit_32x` its baseline
(B.2.1). `natural_32x` and `shapes_32x` are what the embedded weights use. `small_*` and
`magvit_small_*` are the paper's comparison at a size that a CPU trains: the same encoder, decoders
of about the same cost.
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


def natural_32x() -> dict[str, Any]:
    """Natural video at 1 to 32x, content that moves: 6 M parameters, trains on a CPU."""
    return {
        "temporal_compression_ratio": 32,
        "encoder_block_out_channels": (128,) * 4,
        "encoder_layers_per_block": 1,
        "encoder_strides": ((2, 1), (2, 1), (2, 1), (1, 1)),
        "encoder_patch_size": 8,
        "encoder_time_patch_size": 4,
        "encoder_time_kernel": 1,
        "num_layers": 6,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "mlp_ratio": 3.0,
        "mlp_conv": True,
        "attention_window": 4,
        "shared_modulation": True,
        "siren_width": 96,
        "moving_content": True,
    }


def _small_encoder(ratio: int) -> dict[str, Any]:
    halvings = ratio.bit_length() - 1
    return {
        "temporal_compression_ratio": ratio,
        "encoder_block_out_channels": (48,) * (halvings + 1),
        "encoder_layers_per_block": 1,
        "encoder_strides": ((2, 1),) * halvings + ((1, 1),),
        "encoder_patch_size": 8,
    }


def _small(ratio: int) -> dict[str, Any]:
    return _small_encoder(ratio) | {
        "num_layers": 5,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "mlp_ratio": 3.0,
        "mlp_conv": True,
        "attention_window": 4,
        "shared_modulation": True,
        "siren_width": 96,
    }


def small_4x() -> dict[str, Any]:
    return _small(4)


def small_8x() -> dict[str, Any]:
    """The paper's method with a patch stem and windows of 4 x 4 positions: 4.7 M parameters."""
    return _small(8)


def small_16x() -> dict[str, Any]:
    return _small(16)


def small_32x() -> dict[str, Any]:
    return _small(32)


def shapes_32x() -> dict[str, Any]:
    """The paper's method on the generated world (64 x 64), 33 frames to 2: 3 M parameters."""
    return small_32x() | {"num_layers": 5, "num_attention_heads": 3, "mlp_ratio": 2.5}


def in_context(config: dict[str, Any]) -> dict[str, Any]:
    """The paper's ablation (Tab. 3) of `config`: latents as tokens, fixed positional encoding."""
    return config | {"conditioning_type": "in_context"}


def small_full_8x() -> dict[str, Any]:
    """`small_8x` with the paper's full attention and no convolution in the blocks, for Tab. 3.

    So that nothing but the conditioning tells a token where it is.
    """
    return small_8x() | {"attention_window": None, "mlp_conv": False}


def small_in_context_8x() -> dict[str, Any]:
    return in_context(small_full_8x())


def regen_in_context_8x() -> dict[str, Any]:
    return in_context(regen_8x())


# (latent frames of a chunk, width of the decoder's last stage, of the widened one of App. E)
PAPER_MAGVIT = {4: (5, 128, 0), 8: (3, 128, 0), 16: (2, 128, 272), 32: (2, 128, 312)}
SMALL_MAGVIT = {4: (5, 144, 0), 8: (3, 136, 0), 16: (2, 140, 280), 32: (2, 152, 304)}


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


def magvit_4x() -> dict[str, Any]:
    return _magvit(4)


def magvit_8x() -> dict[str, Any]:
    return _magvit(8)


def magvit_16x() -> dict[str, Any]:
    return _magvit(16)


def magvit_32x() -> dict[str, Any]:
    return _magvit(32)


def magvit_16x_wide() -> dict[str, Any]:
    """App. E: the decoder as wide as it takes to have the parameters of REGEN's."""
    return _magvit(16, wide=True)


def magvit_32x_wide() -> dict[str, Any]:
    return _magvit(32, wide=True)


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


def magvit_small_4x() -> dict[str, Any]:
    return _magvit_small(4)


def magvit_small_8x() -> dict[str, Any]:
    return _magvit_small(8)


def magvit_small_16x() -> dict[str, Any]:
    return _magvit_small(16)


def magvit_small_32x() -> dict[str, Any]:
    return _magvit_small(32)


def magvit_small_16x_wide() -> dict[str, Any]:
    return _magvit_small(16, wide=True)


def magvit_small_32x_wide() -> dict[str, Any]:
    return _magvit_small(32, wide=True)


Preset = Callable[[], dict[str, Any]]


def _named(*presets: Preset) -> dict[str, Preset]:
    return {preset.__name__: preset for preset in presets}


PRESETS = _named(
    regen_4x, regen_8x, regen_16x, regen_32x, regen_in_context_8x, natural_32x,
    small_4x, small_8x, small_16x, small_32x, shapes_32x, small_full_8x, small_in_context_8x,
)  # fmt: skip

MAGVIT_PRESETS = _named(
    magvit_4x, magvit_8x, magvit_16x, magvit_32x, magvit_16x_wide, magvit_32x_wide,
    magvit_small_4x, magvit_small_8x, magvit_small_16x, magvit_small_32x,
    magvit_small_16x_wide, magvit_small_32x_wide,
)  # fmt: skip
