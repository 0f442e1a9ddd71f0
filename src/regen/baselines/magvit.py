"""`AutoencoderMAGVITv2`: the paper's baseline, of continuous latents (Sec. 4.1, B.2.1, App. D, E).

The encoder is REGEN's, of longer chunks: 17 frames become 5, 3 or 2 latent frames at k = 4, 8, 16,
33 become 2 at k = 32. The decoder is convolutional: one pass, at the frames' own times only. Videos
are float `[B, 3, T, H, W]` in [-1, 1], latents `[B, 8, n, ceil(H/8), ceil(W/8)]`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from regen.chunking import (
    PATCH,
    ChunkGeometry,
    DecodeChunk,
    check_latents,
    check_times,
    decode_by_chunk,
    encode_by_chunk,
)
from regen.model.autoencoder import REGENEncoderOutput
from regen.model.encoder import (
    CausalConv3d,
    ChannelRMSNorm,
    REGENEncoder,
    ResidualBlock,
    check_strides,
)
from regen.offloading import within_hooks

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Upsample(nn.Module):
    """Convolution, then depth to space and time: n + 1 frames become t n + 1 (MAGVIT-v2)."""

    def __init__(self, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.temporal, self.spatial = stride
        self.conv = CausalConv3d(channels, channels * self.temporal * self.spatial**2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = rearrange(
            self.conv(hidden_states),
            "b (c t p q) f h w -> b c (f t) (h p) (w q)",
            t=self.temporal,
            p=self.spatial,
            q=self.spatial,
        )
        return hidden_states[:, :, self.temporal - 1 :]  # what stands before the first frame


def spread_latents(latents: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Latents `[B, 8, n, h, w]` at each position of `size` (T, H, W): the one there."""
    num_latents, num_frames = latents.shape[2], size[0]
    frames = torch.arange(num_frames, device=latents.device)
    steps = max(num_frames - 1, 1)
    latents = latents[:, :, (frames * (num_latents - 1) + steps - 1) // steps]
    return F.interpolate(latents, tuple(size), mode="nearest")


class AdaptiveNorm(nn.Module):
    """RMS norm, then scale and shift from the latent of the position; starts as the norm alone.

    Choice: the adaptive norm of MAGVIT-v2's decoder reads the latent of each position. Its paper
    says that the latents control it, not how.
    """

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels)
        self.modulation = CausalConv3d(latent_channels, 2 * channels, (1, 1, 1))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)  # type: ignore[arg-type]

    def forward(self, hidden_states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        modulation = spread_latents(self.modulation(latents), hidden_states.shape[2:])
        scale, shift = modulation.chunk(2, dim=1)
        return self.norm(hidden_states) * (1 + scale) + shift


class MAGVITDecoder(nn.Module):
    """Causal 3D convolutions: latents `[B, 8, n, h, w]` -> video `[B, 3, T, 8 h, 8 w]`.

    `block_out_channels`, `strides`: width of each stage and the (time, space) doubling before it,
    in the order of the computation; one more of `strides` follows the last stage. `patch_size`:
    pixels that the last convolution gives at each position; 1 in the paper.
    """

    def __init__(
        self,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        strides: Sequence[Sequence[int]],
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.gradient_checkpointing = False
        width = block_out_channels[0]
        self.conv_in = CausalConv3d(latent_channels, width)
        self.blocks = nn.ModuleList()
        for out_channels, stride in zip(block_out_channels, strides[:-1], strict=True):
            if tuple(stride) != (1, 1):
                self.blocks.append(Upsample(width, stride))
            self.blocks.append(AdaptiveNorm(width, latent_channels))
            for _ in range(layers_per_block):
                self.blocks.append(ResidualBlock(width, out_channels))
                width = out_channels
        if tuple(strides[-1]) != (1, 1):
            self.blocks.append(Upsample(width, strides[-1]))
        self.norm_out = ChannelRMSNorm(width)
        self.conv_out = CausalConv3d(width, 3 * patch_size**2)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_in(latents)
        for block in self.blocks:
            arguments = (latents,) if isinstance(block, AdaptiveNorm) else ()
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden_states = checkpoint(block, hidden_states, *arguments, use_reentrant=False)
            else:
                hidden_states = block(hidden_states, *arguments)
        video = self.conv_out(F.silu(self.norm_out(hidden_states)))
        return rearrange(
            video, "b (c p q) t h w -> b c t (h p) (w q)", p=self.patch_size, q=self.patch_size
        )


class AutoencoderMAGVITv2(ModelMixin, AutoencoderMixin, ConfigMixin):
    """MAGVIT-v2 with continuous latents, as the paper reimplements it (B.2.1).

    `temporal_compression_ratio` k is nominal; `latent_frames_per_chunk` L makes chunks of
    (L - 1) k + 1 frames. `encoder_*` see `REGENEncoder`, `decoder_*` see `MAGVITDecoder`. A last
    chunk that is not full has fewer latent frames; its last frame is repeated as far as it takes.

    Raises ValueError for a configuration that cannot work.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResidualBlock"]

    @register_to_config
    def __init__(
        self,
        temporal_compression_ratio: int = 8,
        latent_frames_per_chunk: int = 3,
        latent_channels: int = 8,
        encoder_block_out_channels: Sequence[int] = (128, 256, 512, 768, 768),
        encoder_layers_per_block: int = 2,
        encoder_strides: Sequence[Sequence[int]] = ((1, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
        encoder_patch_size: int = 1,
        decoder_block_out_channels: Sequence[int] = (768, 768, 512, 256, 128),
        decoder_layers_per_block: int = 2,
        decoder_strides: Sequence[Sequence[int]] = (
            (1, 1), (2, 1), (2, 2), (2, 2), (1, 2), (1, 1),
        ),
        decoder_patch_size: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        check_strides(encoder_strides, encoder_patch_size, temporal_compression_ratio)
        check_strides(decoder_strides, decoder_patch_size, temporal_compression_ratio)
        self.temporal_compression_ratio = temporal_compression_ratio
        self.spatial_compression_ratio = PATCH
        self.geometry = ChunkGeometry(temporal_compression_ratio, latent_frames_per_chunk)
        self.encoder = REGENEncoder(
            2 * latent_channels,
            encoder_block_out_channels,
            encoder_layers_per_block,
            encoder_strides,
            encoder_patch_size,
        )
        self.decoder = MAGVITDecoder(
            latent_channels,
            decoder_block_out_channels,
            decoder_layers_per_block,
            decoder_strides,
            decoder_patch_size,
        )

    def encode_chunk(self, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, 3, j k + 1, H, W]` -> mean and log variance, `[B, 8, j + 1, h, w]` each."""
        mean, log_variance = self.encoder(chunk).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def decode_chunk(self, latents: torch.Tensor) -> torch.Tensor:
        """`[B, 8, j + 1, h, w]` -> `[B, 3, j k + 1, 8 h, 8 w]`."""
        return self.decoder(latents)

    supports_frame_times = False
    is_generative = False
    sees_next_chunk = False

    def chunk_decoder(
        self, num_inference_steps: int = 1, generator: torch.Generator | None = None
    ) -> DecodeChunk:
        """Decodes chunks at the times 0 to F - 1; ValueError for more than one step."""
        if num_inference_steps != 1:
            raise ValueError(f"MAGVIT-v2 decodes in one step, got {num_inference_steps}")

        def decode_chunk(
            _: int,
            latents: torch.Tensor,
            __: torch.Tensor | None,
            frame_times: torch.Tensor,
            ___: int | None = None,
            /,
        ) -> torch.Tensor:
            video = self.decode_chunk(latents.to(self.dtype)).float()
            return video[:, :, frame_times.long().to(video.device)].clamp(-1, 1)

        return decode_chunk

    @within_hooks
    def encode(
        self, video: torch.Tensor, return_dict: bool = True
    ) -> REGENEncoderOutput | tuple[torch.Tensor]:
        """Encode `video` `[B, 3, T, H, W]` in [-1, 1], chunk by chunk.

        `.latents` of the result: the means, `[B, 8, n, h, w]`, float32. Raises ValueError for
        another shape or range.
        """
        latents = encode_by_chunk(
            video, self.geometry, lambda chunk: self.encode_chunk(chunk.to(self.dtype))[0]
        )
        return REGENEncoderOutput(latents=latents) if return_dict else (latents,)

    @within_hooks
    def decode(
        self,
        latents: torch.Tensor,
        num_frames: int | None = None,
        frame_times: torch.Tensor | Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode `latents` `[B, 8, n, h, w]` to `.sample` `[B, 3, F, H, W]`, float32, in [-1, 1].

        `num_frames`: the first frames of the video (default: all that the latents stand for).
        `height`, `width`: crop to these pixels. `frame_times`, `num_inference_steps`, `generator`
        are those of `AutoencoderREGEN.decode`: this decoder has the frames' own times, one step,
        and no noise; ValueError for others, and for latents that cannot be decoded.
        """
        height, width = check_latents(latents, self.config.latent_channels, height, width)
        if frame_times is not None:
            raise ValueError("MAGVIT-v2 decodes frames at their own times: give num_frames")
        times = check_times(self.geometry, latents.shape[2], num_frames, None)
        decode_chunk = self.chunk_decoder(num_inference_steps)
        video = decode_by_chunk(latents, times, self.geometry, decode_chunk, height, width)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(
        self, sample: torch.Tensor, generator: torch.Generator | None = None
    ) -> DecoderOutput:
        """Encode and decode `sample` `[B, 3, T, H, W]`: the reconstruction, of the same shape."""
        latents = self.encode(sample, return_dict=False)[0]
        num_frames, height, width = sample.shape[2:]
        decoded = self.decode(latents, num_frames, height=height, width=width)
        assert isinstance(decoded, DecoderOutput)
        return decoded
