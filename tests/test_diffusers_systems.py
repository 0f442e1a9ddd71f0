"""Video autoencoders of diffusers, tiny and with random weights, against their own `forward`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regen.evaluation.diffusers_systems import (
    DIFFUSION_DECODER,
    VIDEO_AUTOENCODERS,
    diffusers_system,
)
from regen.evaluation.systems import NeuralSystem
from regen.video import frames_to_video, video_to_frames

FOUR = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
NORMAL = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
# Class: its configuration, frames and side that it takes as they are, latent frames of them.
TINY = {
    "AutoencoderKLAllegro": (
        {**FOUR, "block_out_channels": (2, 2, 2, 2), "norm_num_groups": 1, "sample_size": 128},
        (24, 128, 6),
    ),
    "AutoencoderKLCogVideoX": ({**FOUR, "latent_channels": 4}, (9, 32, 3)),
    "AutoencoderKLCosmos": (
        {
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "latent_channels": 4,
            "num_layers": 1,
            "attention_resolutions": (8,),
            "resolution": 16,
        },
        (9, 32, 2),
    ),
    "AutoencoderKLHunyuanVideo": ({**FOUR, "latent_channels": 4}, (9, 32, 3)),
    "AutoencoderKLHunyuanVideo15": (
        {"block_out_channels": (8, 8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1},
        (9, 32, 3),
    ),
    "AutoencoderKLKVAEVideo": (
        {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 4},
        (9, 32, 3),
    ),
    "AutoencoderKLLTXVideo": (
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "timestep_conditioning": True,
        },
        (9, 32, 2),
    ),
    "AutoencoderKLLTX2Video": (
        {
            "latent_channels": 8,
            "block_out_channels": (8, 16, 32, 64),
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
        (9, 64, 2),
    ),
    "AutoencoderKLMagvit": ({**FOUR, "latent_channels": 4}, (9, 32, 3)),
    "AutoencoderKLMiniMaxH3": (
        {
            "block_out_channels": (8,) * 6,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "decoder_num_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_attention_head_dim": 16,
            "decoder_num_register_tokens": 1,
        },
        (22, 32, 7),
    ),
    "AutoencoderKLMochi": (
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "latent_channels": 4,
            "layers_per_block": (1, 1, 1, 1, 1),
            **NORMAL,
        },
        (7, 32, 2),
    ),
    "AutoencoderKLQwenImage": ({**WAN, **NORMAL}, (9, 32, 3)),
    "AutoencoderKLTemporalDecoder": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "block_out_channels": (32, 32, 32, 32),
        },
        (9, 32, 9),
    ),
    "AutoencoderKLWan": ({**WAN, **NORMAL}, (9, 32, 3)),
    "AutoencoderVidTok": (
        {"ch": 32, "ch_mult": [1, 1, 1, 1], "z_channels": 4, "num_res_blocks": 1},
        (9, 32, 3),
    ),
}


def make_tiny(class_name: str, folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(diffusers, class_name)(**TINY[class_name][0]).save_pretrained(folder)


def load(class_name: str, folder: Path, suffix: str = "") -> NeuralSystem:
    return diffusers_system(f"{class_name}:{folder}{suffix}", "cpu", torch.float32)


def noise(num_frames: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num_frames, height, width, 3), np.uint8)


@torch.no_grad()
def own_forward(system: NeuralSystem, video: torch.Tensor) -> torch.Tensor:
    """The class's own encode and decode, where `forward` has an option to take the mode."""
    model, name = system.model, type(system.model).__name__
    if name == "AutoencoderKLTemporalDecoder":
        pictures = video[0].transpose(0, 1)
        return model(pictures, num_frames=len(pictures)).sample.transpose(0, 1)[None]
    options = {"temb": torch.zeros(1)} if name == "AutoencoderKLLTXVideo" else {}
    if name == "AutoencoderVidTok":
        options = {"sample_posterior": False}
    if name == "AutoencoderKLAllegro":
        return model(video).sample.transpose(1, 2)
    return model(video, **options).sample


CLASSES = sorted(set(VIDEO_AUTOENCODERS) - {DIFFUSION_DECODER})


def make_diffusion_decoded(folder: Path) -> str:
    """A tiny diffusion decoder of LTX-2 and its autoencoder: what --diffusers takes."""
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, DIFFUSION_DECODER):
        pytest.skip(f"diffusers {diffusers.__version__} has no {DIFFUSION_DECODER}")
    make_tiny("AutoencoderKLLTX2Video", folder / "vae")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(diffusers, DIFFUSION_DECODER)(
            latent_channels=8,
            decoder_head_dim=8,
            decoder_stage_channels=(64, 32, 16, 16, 8),
            decoder_stage_depths=(1,) * 5,
            decoder_stage_kernels=((3, 3, 3),) * 4,
            decoder_stage5_kernel=(3, 3, 3),
            decoder_t_emb_dim=16,
        ).save_pretrained(folder / "decoder")
    return f"{DIFFUSION_DECODER}:{folder / 'decoder'}:{folder / 'vae'}"


def test_the_diffusion_decoder_of_ltx2_has_steps_and_seeds(tmp_path: Path) -> None:
    spec = make_diffusion_decoded(tmp_path)
    system = diffusers_system(spec, "cpu", torch.float32)
    assert system.is_generative and system.about["nominal"] == [8, 32]
    frames = noise(9, 96, 96)
    result = system.reconstruct(None, frames, 2, 0)
    video = frames_to_video(frames)[None]
    with torch.no_grad():
        latents = system.model.vae.encode(video).latent_dist.mode()
        generator = torch.Generator().manual_seed(0)
        theirs = system.model.decoder.decode(
            latents, generator=generator, num_inference_steps=2
        ).sample
    assert result.latent_shape == tuple(latents.shape[1:])
    difference = result.frames.astype(int) - video_to_frames(theirs[0].clamp(-1, 1))
    assert np.abs(difference).max() <= 1
    for steps, seed in ((1, 0), (2, 1)):
        other = system.reconstruct(None, frames, steps, seed).frames
        assert not np.array_equal(other, result.frames)
    cost = system.cost(frames, 1)
    assert cost["decoder_flops"] is None and cost["decoder_latency_s"] > 0
    assert cost["decoder_parameters"] == sum(p.numel() for p in system.model.decoder.parameters())
    small = noise(6, 30, 34)
    assert system.reconstruct(None, small, 1, 0).frames.shape == small.shape
    with pytest.raises(ValueError, match="FOLDER:FOLDER"):
        diffusers_system(spec.rpartition(":")[0], "cpu", torch.float32)


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_class_gives_what_its_own_forward_gives(class_name: str, tmp_path: Path) -> None:
    make_tiny(class_name, tmp_path)
    system = load(class_name, tmp_path)
    num_frames, side, num_latent_frames = TINY[class_name][1]
    frames = noise(num_frames, side, side)
    result = system.reconstruct(None, frames, 1, 0)
    theirs = own_forward(system, frames_to_video(frames)[None])[0].clamp(-1, 1)
    assert theirs.std() > 0.001
    difference = result.frames.astype(int) - video_to_frames(theirs)
    assert np.abs(difference).max() <= 1
    space = system.about["nominal"][1]
    assert result.latent_shape is not None
    assert result.latent_shape[1:] == (num_latent_frames, side // space, side // space)


@pytest.mark.parametrize("class_name", sorted(set(CLASSES) - {"AutoencoderKLAllegro"}))
def test_any_length_and_size_come_back(class_name: str, tmp_path: Path) -> None:
    """Also one frame, numbers of frames between the rule's, and sides that are no multiples."""
    make_tiny(class_name, tmp_path)
    system = load(class_name, tmp_path)
    for num_frames in (1, 6):
        frames = noise(num_frames, 30, 34)
        assert system.reconstruct(None, frames, 1, 0).frames.shape == frames.shape


def test_cost_is_of_the_decoder(tmp_path: Path) -> None:
    make_tiny("AutoencoderKLWan", tmp_path)
    system = load("AutoencoderKLWan", tmp_path)
    cost = system.cost(noise(5, 16, 16), 1)
    model = system.model
    parts = (model.decoder, model.post_quant_conv)
    whole = sum(one.numel() for part in parts for one in part.parameters())
    assert 0.8 * whole < cost["decoder_parameters"] <= whole
    twice = system.cost(noise(5, 32, 16), 1)
    assert twice["decoder_flops"] == pytest.approx(2 * cost["decoder_flops"], rel=0.2)


def test_attention_is_counted() -> None:
    """On a CPU too, where PyTorch's counter knows no rule for its kernel."""
    attention = torch.nn.functional.scaled_dot_product_attention

    class Attend(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

    def decode(latents: torch.Tensor, *_: object) -> torch.Tensor:
        tokens = latents.flatten(2).transpose(1, 2)[:, None]  # [1, 1, N, C]
        attention(tokens, tokens, tokens)
        return latents

    system = NeuralSystem("attend", {}, Attend(), lambda video: video, decode)
    count = system.cost(noise(2, 8, 8), 1)["decoder_flops"]
    assert count == 2 * 2 * 128 * 128 * 3


def test_tiles_are_a_system_of_their_own(tmp_path: Path) -> None:
    make_tiny("AutoencoderKLWan", tmp_path)
    whole, tiled = load("AutoencoderKLWan", tmp_path), load("AutoencoderKLWan", tmp_path, ":tiled")
    assert tiled.model.use_tiling and not whole.model.use_tiling
    assert whole.about != tiled.about and whole.name != tiled.name


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    make_tiny("AutoencoderKLWan", tmp_path)
    with pytest.raises(ValueError, match="cannot load"):
        load("AutoencoderKLMagvit", tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        load("AutoencoderKLWan", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="CLASS:FOLDER"):
        load("AutoencoderKL", tmp_path)
