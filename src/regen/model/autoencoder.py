"""`AutoencoderREGEN`: Figure 2 as a diffusers model.

A chunk of k + 1 frames -> encoder -> content and motion latents z_c, z_m (Eq. 1) -> conditioning at
any frame time (Eq. 5) -> diffusion transformer -> the chunk again (Eq. 2-4).

Videos are float `[B, 3, T, H, W]` in [-1, 1], any T, H, W >= 1; latents are
`[B, 8, n, ceil(H/8), ceil(W/8)]`, normalised to about zero mean and unit standard deviation per
channel, content (even index) and motion (odd index) apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from regen.chunking import (
    PATCH,
    ChunkGeometry,
    DecodeChunk,
    check_latents,
    check_times,
    decode_by_chunk,
    encode_by_chunk,
    stretch,
)
from regen.flow import PREDICTION_TYPES, precondition
from regen.latent_statistics import LatentStatistics
from regen.model.chunk_decoder import ChunkDecoder
from regen.model.conditioning import InContextConditioning, LatentConditioning
from regen.model.dit import REGENDiT
from regen.model.encoder import REGENEncoder, check_strides
from regen.model.motion import MOTION_CHANNELS
from regen.model.moving_content import NUM_SOURCES, encode_moving
from regen.model.patches import LinearCodec
from regen.offloading import within_hooks

PIXEL_STD = 0.5  # of pixels about grey
CONDITIONING_TYPES = ("content_aware", "in_context")


@dataclass
class REGENEncoderOutput(BaseOutput):
    """`latents`: `[B, 8, n, h, w]`, normalised."""

    latents: torch.Tensor

    @property
    def latent_dist(self) -> DiagonalGaussianDistribution:
        """What code written for other autoencoders asks for; its variance is zero."""
        parameters = torch.cat([self.latents, torch.zeros_like(self.latents)], dim=1)
        return DiagonalGaussianDistribution(parameters, deterministic=True)


class AutoencoderREGEN(ModelMixin, AutoencoderMixin, ConfigMixin, LatentStatistics):
    """Causal 3D convolutional encoder and diffusion transformer decoder (Sec. 3).

    Each chunk of k + 1 frames becomes two latent frames; a last chunk of one frame (an image is
    just that) becomes one.
    `temporal_compression_ratio` is k; `chunk_ratio` see `set_chunk_ratio`. `encoder_*`: see
    `REGENEncoder`. The decoder is `num_layers` blocks of `num_attention_heads` x
    `attention_head_dim`; `attention_window` None is the paper's full attention; `prediction_type`
    see `regen.flow`. `conditioning_type` "in_context" is the paper's ablation (Tab. 3) instead of
    Eq. 5.

    `moving_content`: the conditioning also says where, in the first frame, each pixel of a later
    frame comes from. The decoder draws frame 0 from z_c and its linear picture, and every other
    frame from frame 0 as it has moved there, z_c, z_m and the time. False is the paper's method.

    `scaling_factor`, `latents_mean`, `latents_std`: what code written for other video autoencoders
    applies to latents. `encode` normalises and `decode` undoes it, so these change nothing: 1, and
    zeros and ones for each channel.

    Raises ValueError for a configuration that cannot work.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock", "ResidualBlock"]
    _repeated_blocks = ["DiTBlock"]
    _group_offload_block_modules = ["encoder", "dit"]
    _skip_layerwise_casting_patterns = [
        "patch_embed", "norm", "linear", "conditioning", "conv_in", "conv_out", "time_embed",
        "modulation", r"^dit\.proj_",
    ]  # fmt: skip

    @register_to_config
    def __init__(
        self,
        temporal_compression_ratio: int = 8,
        latent_channels: int = 8,
        encoder_block_out_channels: Sequence[int] = (128, 256, 512, 768, 768),
        encoder_layers_per_block: int = 2,
        encoder_strides: Sequence[Sequence[int]] = ((1, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
        encoder_patch_size: int = 1,
        encoder_time_patch_size: int | None = None,
        encoder_time_kernel: int = 3,
        num_layers: int = 24,
        num_attention_heads: int = 16,
        attention_head_dim: int = 128,
        mlp_ratio: float = 4.0,
        mlp_conv: bool = False,
        attention_window: int | None = None,
        shared_modulation: bool = False,
        siren_width: int = 256,
        siren_num_layers: int = 3,
        siren_omega: float = 10.0,
        moving_content: bool = False,
        prediction_type: str = "sample",
        conditioning_type: str = "content_aware",
        chunk_ratio: int | None = None,
        scaling_factor: float = 1.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_choice("conditioning_type", conditioning_type, CONDITIONING_TYPES)
        _check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        is_in_context = conditioning_type == "in_context"
        if moving_content and (
            prediction_type != "sample"
            or is_in_context
            or None in (encoder_time_patch_size, attention_window)
        ):
            raise ValueError(
                "moving_content takes prediction_type sample, conditioning_type content_aware, "
                "an encoder_time_patch_size and an attention_window"
            )
        check_strides(
            encoder_strides, encoder_patch_size, temporal_compression_ratio, encoder_time_patch_size
        )
        self.register_to_config(
            latents_mean=latents_mean or [0.0] * latent_channels,
            latents_std=latents_std or [1.0] * latent_channels,
        )
        self.spatial_compression_ratio = PATCH
        self.set_chunk_ratio(chunk_ratio)
        dim = num_attention_heads * attention_head_dim
        self.encoder = REGENEncoder(
            latent_channels,
            encoder_block_out_channels,
            encoder_layers_per_block,
            encoder_strides,
            encoder_patch_size,
            encoder_time_patch_size,
            encoder_time_kernel,
        )
        k, siren = temporal_compression_ratio, (siren_width, siren_num_layers, siren_omega)
        self.conditioning: LatentConditioning | InContextConditioning = (
            InContextConditioning(latent_channels, dim, k)
            if is_in_context
            else LatentConditioning(latent_channels, dim, *siren, k)
        )
        self.dit = REGENDiT(
            dim,
            num_layers,
            num_attention_heads,
            mlp_ratio,
            mlp_conv,
            attention_window,
            shared_modulation,
            in_channels=9 if moving_content else 3,
            framewise=moving_content,
        )
        self.linear: LinearCodec | None = None
        if moving_content:
            self.linear = LinearCodec(latent_channels)
            self.sources = nn.Parameter(torch.zeros(NUM_SOURCES, dim))
            with torch.no_grad():  # one step learns nothing of x_t and t: they begin unseen
                self.dit.patch_embed.weight[:, : 3 * PATCH**2] = 0
                self.dit.time_embed[0].weight.zero_()  # type: ignore[operator]
            nn.init.zeros_(self.encoder.conv_out.weight)
            nn.init.zeros_(self.encoder.conv_out.bias)  # type: ignore[arg-type]
            nn.init.normal_(self.encoder.conv_out.weight[MOTION_CHANNELS:], std=0.002)
        # Choice: z_m of an image is a learned constant. The encoder makes none of one frame.
        self.image_motion_latents = nn.Parameter(torch.zeros(latent_channels))
        # Choice: latents are normalised by mean and standard deviation per channel, content and
        # motion apart. Their scales differ, and a generative model on them wants unit variance.
        self.add_latent_statistics(latent_channels)

    def set_chunk_ratio(self, ratio: int | None) -> None:
        """Compress `ratio` times in time where nothing else is asked for; None: k, as trained.

        Chunks of `ratio` + 1 frames are stretched in time to the k + 1 that the networks know, and
        decoded at their own times: the weights, and `encoder_id`, stay.
        `temporal_compression_ratio` and `geometry` follow; `config.temporal_compression_ratio`
        stays k. Raises ValueError for a ratio that is not from 1 to k.
        """
        own = self.config.temporal_compression_ratio
        geometry = self.geometry_at(own if ratio is None else ratio)
        self.register_to_config(chunk_ratio=ratio)
        self.geometry = geometry
        self.temporal_compression_ratio: int = geometry.temporal_compression_ratio

    def geometry_at(self, ratio: int | None) -> ChunkGeometry:
        """Chunks of `ratio` + 1 frames; None: as `set_chunk_ratio` says."""
        # Choice: a model of k = 32 serves every lower ratio by stretching shorter chunks to 33
        # frames. The paper trains a model for each ratio; this one loses nothing to that of k = 8.
        if ratio is None:
            return self.geometry
        most = self.config.temporal_compression_ratio
        if not 1 <= ratio <= most:
            raise ValueError(f"a model of {most}x in time works at 1 to {most}x, got {ratio}")
        return ChunkGeometry(ratio)

    # -- one chunk, sizes multiples of 8: Figure 2 -------------------------------------------------

    def encode_chunk(self, chunk: torch.Tensor, motion: torch.Tensor | None = None) -> torch.Tensor:
        """One chunk `[B, 3, n, H, W]` -> raw latents `[B, 8, 1 or 2, h, w]` (Eq. 1).

        n is 1, k + 1, or anything between, which counts as k + 1 frames in as much time.
        `motion`: `estimate_motion(chunk)`, where it is known already.
        """
        length = self.config.temporal_compression_ratio + 1
        if self.linear is None:
            return self.encoder(stretch(chunk, length))
        return encode_moving(self, chunk, motion)

    def fill_motion(self, latents: torch.Tensor) -> torch.Tensor:
        """Add the constant motion latent to an image's `[B, 8, 1, h, w]`: `[B, 8, 2, h, w]`."""
        if latents.shape[2] == 2:
            return latents
        motion = self.image_motion_latents.to(latents.dtype).view(1, -1, 1, 1, 1).expand_as(latents)
        return torch.cat([latents, motion], dim=2)

    def predict(
        self,
        noisy_video: torch.Tensor,
        timestep: torch.Tensor,
        latents: torch.Tensor,
        frame_times: torch.Tensor,
        ratio: int | None = None,
    ) -> torch.Tensor:
        """The network: x_t and raw latents `[B, 8, 2, h, w]` -> prediction `[B, 3, F, H, W]`.

        Sec. 3.2. `timestep` `[B]` in [0, 1]; `frame_times` `[B, F]` in frames from the start of the
        chunk. Of models without `moving_content`.
        """
        conditioning, context = self.conditioning(latents, self.stretched(frame_times, ratio)), None
        if isinstance(self.conditioning, InContextConditioning):
            conditioning, context = conditioning
        if self.config.prediction_type != "sample":
            return self.dit(noisy_video.to(self.dtype), timestep, conditioning, context)[0]
        # Choice: a preconditioned x-prediction. The network sees x_t times its posterior gain (0
        # at t = 1: noise as strong as the conditioning is what it would have to learn to ignore),
        # and adds to the posterior mean of a Gaussian: about grey.
        gain, scale = precondition(timestep, PIXEL_STD)
        mean = gain * noisy_video.float()
        output = self.dit(mean.to(self.dtype), timestep, conditioning, context)[0]
        return mean + scale * output.float()

    def stretched(self, frame_times: torch.Tensor, ratio: int | None) -> torch.Tensor:
        """Times in frames of chunks of `ratio` + 1 -> in frames of the k + 1 of the networks."""
        ratio = ratio or self.temporal_compression_ratio
        return frame_times * (self.config.temporal_compression_ratio / ratio)

    # -- what everyone else uses: the same of AutoencoderMAGVITv2 ----------------------------------

    supports_frame_times = True  # decodes at any times
    is_generative = True  # decodes by diffusion: steps, a seed; its latents have statistics

    @property
    def sees_next_chunk(self) -> bool:
        """Whether all but the first frame of a chunk are decoded with the next one in view."""
        return self.linear is not None

    def chunk_decoder(
        self,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        ratio: int | None = None,
    ) -> DecodeChunk:
        """Decodes chunks of one video in turn; see `ChunkDecoder.decode`."""
        return ChunkDecoder(self, num_inference_steps, generator, ratio).decode

    @within_hooks
    def encode(
        self, video: torch.Tensor, return_dict: bool = True, ratio: int | None = None
    ) -> REGENEncoderOutput | tuple[torch.Tensor]:
        """Encode `video` `[B, 3, T, H, W]` in [-1, 1], chunk by chunk.

        `.latents` of the result: `[B, 8, n, h, w]`, float32. H and W need not be multiples of 8:
        edges are repeated inside. `ratio`: in time, from 1 to k; default: `set_chunk_ratio`'s.
        Raises ValueError for another shape or range.
        """
        raw = encode_by_chunk(
            video, self.geometry_at(ratio), lambda chunk: self.encode_chunk(chunk.to(self.dtype))
        )
        latents = self.normalize_latents(raw)
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
        ratio: int | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Re-generate a video from `latents` `[B, 8, n, h, w]`.

        `.sample` of the result: `[B, 3, F, H, W]`, float32, in [-1, 1].
        `num_frames`: frames 0 .. num_frames - 1 of the video (default: all that the latents stand
        for).
        `frame_times`: instead, any real times in frames from the start of the video (`[F]`):
        between frames, before the first, after the last, a sparse few. `height`, `width`: crop to
        these pixels (default 8 h, 8 w).
        `num_inference_steps`: Euler steps, 1 is a single forward pass. `ratio`: that of `encode`.
        Raises ValueError for what cannot be decoded.
        """
        geometry = self.geometry_at(ratio)
        height, width = check_latents(latents, self.config.latent_channels, height, width)
        times = check_times(geometry, latents.shape[2], num_frames, frame_times)
        decode_chunk = self.chunk_decoder(num_inference_steps, generator, ratio)
        video = decode_by_chunk(latents, times, geometry, decode_chunk, height, width)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(
        self,
        sample: torch.Tensor,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        ratio: int | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode `sample` `[B, 3, T, H, W]`: the reconstruction, of the same shape."""
        latents = self.encode(sample, return_dict=False, ratio=ratio)[0]
        return self.decode(
            latents,
            num_frames=sample.shape[2],
            height=sample.shape[3],
            width=sample.shape[4],
            num_inference_steps=num_inference_steps,
            generator=generator,
            return_dict=return_dict,
            ratio=ratio,
        )

    def encoder_id(self) -> str:
        """16 hex digits that name the latent space: a hash of its encoder and statistics.

        Weights count as bfloat16, so that a copy in either precision has the same id.
        """
        digest = hashlib.sha256(str(self.config.temporal_compression_ratio).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name.startswith(("encoder.", "linear.analysis.", "latents_")):
                digest.update(f"{name}{list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().bfloat16().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r}")
