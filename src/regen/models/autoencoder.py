"""`AutoencoderREGEN`: Figure 2 as a diffusers model.

Videos are float `[B, 3, T, H, W]` in [-1, 1], any T, H, W >= 1; latents are
`[B, 8, n, ceil(H/8), ceil(W/8)]`, normalised to about zero mean and unit standard deviation per
channel, content (even index) and motion (odd index) apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from regen.chunking import ChunkGeometry, stretch
from regen.flow import PREDICTION_TYPES, posterior_gain
from regen.models.chunk_decoder import ChunkDecoder
from regen.models.conditioning import InContextConditioning, LatentConditioning
from regen.models.dit import REGENDiT
from regen.models.encoder import REGENEncoder
from regen.models.latent_statistics import LatentStatistics
from regen.models.motion import (
    MOTION_CHANNELS,
    NEXT_CELL,
    displacement,
    field_to_next,
    from_latents,
    interpolate,
    to_latents,
    warp,
)
from regen.models.motion_estimation import estimate_motion, motion_to_next
from regen.models.offloading import within_hooks
from regen.models.patches import PATCH, LinearCodec

PIXEL_STD = 0.5  # of pixels about grey
PRIOR_STD = 0.1  # of pixels about the linear picture, or the warped first frame
CODE_RANGE = 3.0  # of the learned channels of z_m
CONDITIONING_TYPES = ("content_aware", "in_context")
# What a frame is drawn from, each with a learned vector: z_c; the first frame; that and the next
# chunk's first frame.
NUM_SOURCES = 3


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
        "modulation", r"^dit\.proj_out$",
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
        if conditioning_type not in CONDITIONING_TYPES:
            raise ValueError(
                f"conditioning_type is one of {', '.join(CONDITIONING_TYPES)}, "
                f"got {conditioning_type!r}"
            )
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type is one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}"
            )
        if moving_content and (
            prediction_type != "sample"
            or conditioning_type != "content_aware"
            or encoder_time_patch_size is None
            or attention_window is None
        ):
            raise ValueError(
                "moving_content takes prediction_type sample, conditioning_type content_aware, "
                "an encoder_time_patch_size and an attention_window"
            )
        temporal, spatial = encoder_time_patch_size or 1, encoder_patch_size
        for time_stride, space_stride in encoder_strides:
            temporal, spatial = temporal * time_stride, spatial * space_stride
        if (temporal, spatial) != (temporal_compression_ratio, PATCH):
            raise ValueError(
                f"encoder_strides and the patch sizes compress {temporal}x in time and "
                f"{spatial}x in space, expected {temporal_compression_ratio}x and {PATCH}x"
            )
        self.register_to_config(
            latents_mean=latents_mean or [0.0] * latent_channels,
            latents_std=latents_std or [1.0] * latent_channels,
        )
        self.spatial_compression_ratio = spatial
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
        self.conditioning: LatentConditioning | InContextConditioning
        if conditioning_type == "in_context":
            self.conditioning = InContextConditioning(
                latent_channels, dim, temporal_compression_ratio
            )
        else:
            self.conditioning = LatentConditioning(
                latent_channels,
                dim,
                siren_width,
                siren_num_layers,
                siren_omega,
                temporal_compression_ratio,
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
            nn.init.zeros_(self.encoder.conv_out.weight)
            nn.init.zeros_(self.encoder.conv_out.bias)  # type: ignore[arg-type]
            nn.init.normal_(self.encoder.conv_out.weight[MOTION_CHANNELS:], std=0.002)
        # Choice: z_m of an image is a learned constant. The encoder makes none of one frame.
        self.image_motion_latents = nn.Parameter(torch.zeros(latent_channels))
        # Choice: latents are normalised by mean and standard deviation per channel, content and
        # motion apart. Their scales differ, and a generative model on them wants unit variance.
        self.add_latent_statistics(latent_channels)

    def set_chunk_ratio(self, ratio: int | None) -> None:
        """Compress `ratio` times in time from now on, at most k; None: k, as it was trained.

        Chunks of `ratio` + 1 frames are stretched in time to the k + 1 that the networks know, and
        decoded at their own times: the weights, and `encoder_id`, stay.
        `temporal_compression_ratio` and `geometry` follow; `config.temporal_compression_ratio`
        stays k. Raises ValueError for a ratio that is not from 1 to k.
        """
        # Choice: a model of k = 32 serves every lower ratio by stretching shorter chunks to 33
        # frames. The paper trains a model for each ratio; this one loses nothing to that of k = 8.
        most = self.config.temporal_compression_ratio
        if ratio is not None and not 1 <= ratio <= most:
            raise ValueError(f"a model of {most}x in time works at 1 to {most}x, got {ratio}")
        self.register_to_config(chunk_ratio=ratio)
        self.temporal_compression_ratio: int = most if ratio is None else ratio
        self.geometry = ChunkGeometry(self.temporal_compression_ratio)

    # -- raw latents: one chunk, sizes multiples of 8; what training uses --------------------------

    def encode_chunk(self, chunk: torch.Tensor, motion: torch.Tensor | None = None) -> torch.Tensor:
        """One chunk `[B, 3, n, H, W]` -> raw latents `[B, 8, 1 or 2, h, w]` (Eq. 1).

        n is 1, k + 1, or anything between, which counts as k + 1 frames in as much time.
        `motion`: `estimate_motion(chunk)`, where it is known already.
        """
        length = self.config.temporal_compression_ratio + 1
        if self.linear is None:
            return self.encoder(stretch(chunk, length))
        first, dtype = chunk[:, :, 0], chunk.dtype
        content = self.linear.encode(first)
        if chunk.shape[2] == 1:
            learned = self.encoder(chunk)
            return learned + content[:, :, None].to(dtype)
        # Choice: motion is estimated on the frames as they are, not on the first one as it is
        # decoded. The encoder then needs no decoder; it costs 0.04 dB at 8x and gains 0.17 at 32x.
        if motion is None:
            motion = estimate_motion(chunk)
        moving = to_latents(motion, content.shape[-2:])
        num_later = chunk.shape[2] - 1
        times = torch.arange(1, num_later + 1, device=chunk.device).expand(len(chunk), -1)
        height, width = chunk.shape[-2:]
        field = displacement(from_latents(moving), times, num_later)[..., :height, :width]
        warped = warp(first, field).to(dtype)
        residual = torch.cat([torch.zeros_like(chunk[:, :, :1]), chunk[:, :, 1:] - warped], dim=2)
        residual = stretch(residual, length)[:, :, 1:]
        learned = self.encoder(stretch(chunk, length), residual)
        codes = CODE_RANGE * torch.tanh(learned[:, MOTION_CHANNELS:, 1] / CODE_RANGE)
        motion_latents = torch.cat([moving.to(dtype), codes], dim=1)
        return torch.stack([learned[:, :, 0] + content.to(dtype), motion_latents], dim=2)

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
    ) -> torch.Tensor:
        """The network: x_t and raw latents `[B, 8, 2, h, w]` -> prediction `[B, 3, F, H, W]`.

        Sec. 3.2. `timestep` `[B]` in [0, 1]; `frame_times` `[B, F]` in frames from the start of the
        chunk. Of models without `moving_content`.
        """
        conditioning, context = self.conditioning(latents, self._stretched(frame_times)), None
        if isinstance(self.conditioning, InContextConditioning):
            conditioning, context = conditioning
        if self.config.prediction_type != "sample":
            return self.dit(noisy_video.to(self.dtype), timestep, conditioning, context)
        # Choice: a preconditioned x-prediction. The network sees x_t as far as it can be believed
        # (at t = 1 not at all: noise as strong as the conditioning is what it would have to learn
        # to ignore), and adds to the posterior mean of a Gaussian: of grey pixels here, of the
        # prior in `refine`.
        gain, scale = _precondition(timestep, PIXEL_STD)
        believed = gain * noisy_video.float()
        output = self.dit(believed.to(self.dtype), timestep, conditioning, context)
        return believed + scale * output.float()

    def predict_first(
        self, noisy_frame: torch.Tensor, timestep: torch.Tensor, content: torch.Tensor
    ) -> torch.Tensor:
        """Frame 0 from raw content latents `[B, 8, h, w]`: x_t -> x, `[B, 3, 1, 8 h, 8 w]`."""
        assert self.linear is not None
        latents = self.fill_motion(content[:, :, None])
        times = torch.zeros(len(content), 1, device=content.device)
        prior = self.linear.decode(content)[:, :, None]
        conditioning = self.conditioning(latents, times) + self.sources[0]
        return self._refine(noisy_frame, timestep, prior, prior, conditioning)

    def predict_later(
        self,
        noisy_video: torch.Tensor,
        timestep: torch.Tensor,
        latents: torch.Tensor,
        frame_times: torch.Tensor,
        warped: torch.Tensor,
        reference: torch.Tensor,
        has_next: bool,
        ratio: int | None = None,
    ) -> torch.Tensor:
        """Other frames, from `move_content`'s two: x_t -> x, `[B, 3, F, 8 h, 8 w]`."""
        conditioning = self.conditioning(latents, self._stretched(frame_times, ratio))
        conditioning = conditioning + self.sources[2 if has_next else 1]
        return self._refine(noisy_video, timestep, warped, reference, conditioning)

    def move_content(
        self,
        first: torch.Tensor,
        following: torch.Tensor | None,
        latents: torch.Tensor,
        frame_times: torch.Tensor,
        to_first: torch.Tensor | None = None,
        ratio: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frame 0 `[B, 3, H, W]` as it has moved at `frame_times` `[B, F]`, and a second source.

        Both `[B, 3, F, H, W]`, float32. The second is the next chunk's first frame `following`
        moved back, or, where there is none, frame 0 as it is. `to_first`: `motion_to_next`, where
        it is known already. `ratio`: frames of the chunk after its first.
        """
        span = self.config.temporal_compression_ratio
        height, width = first.shape[-2:]
        motion = from_latents(latents[:, :MOTION_CHANNELS, 1])
        times = self._stretched(frame_times, ratio)
        field = displacement(motion, times, span)[..., :height, :width]
        warped = warp(first, field)
        if following is None:
            return warped, first.float()[:, :, None].expand_as(warped)
        # Choice: a frame is also drawn from the next chunk's first frame, which is decoded anyway.
        # What a chunk uncovers is seen there, and the last frame of a chunk knows the first of the
        # next one: no seam. The decoder finds the motion between the two; it costs no latents.
        if to_first is None:
            step = span / (ratio or self.temporal_compression_ratio)
            to_first = motion_to_next(first, following, motion, span, span + step)
        to_first = interpolate(to_first.float(), NEXT_CELL)[..., :height, :width]
        return warped, warp(following, field_to_next(field, to_first))

    def _refine(
        self,
        noisy_video: torch.Tensor,
        timestep: torch.Tensor,
        prior: torch.Tensor,
        reference: torch.Tensor,
        conditioning: torch.Tensor,
    ) -> torch.Tensor:
        """x_t -> x, float32, where x is `prior` but for a residual; see `predict`."""
        gain, scale = _precondition(timestep, PRIOR_STD)
        t = timestep.float().view(-1, 1, 1, 1, 1)
        believed = gain * (noisy_video.float() - (1 - t) * prior)
        inputs = torch.cat([believed / PRIOR_STD, prior, reference], dim=1)
        output = self.dit(inputs.to(self.dtype), timestep, conditioning.to(self.dtype))
        return prior + believed + scale * output.float()

    def _stretched(self, frame_times: torch.Tensor, ratio: int | None = None) -> torch.Tensor:
        """Times in frames of chunks of `ratio` + 1 -> in frames of the k + 1 of the networks.

        None: of the chunks in use.
        """
        ratio = ratio or self.temporal_compression_ratio
        return frame_times * (self.config.temporal_compression_ratio / ratio)

    # -- the public pair ---------------------------------------------------------------------------

    @within_hooks
    def encode(
        self, video: torch.Tensor, return_dict: bool = True
    ) -> REGENEncoderOutput | tuple[torch.Tensor]:
        """Encode `video` `[B, 3, T, H, W]` in [-1, 1], chunk by chunk.

        `.latents` of the result: `[B, 8, n, h, w]`, float32. H and W need not be multiples of 8:
        edges are repeated inside. Raises ValueError for another shape or range.
        """
        check_video(video)
        height, width = video.shape[-2:]
        chunks, start = [], 0
        for size in self.geometry.chunk_sizes(video.shape[2]):
            chunk = video[:, :, start : start + size].to(self.dtype)
            start += size
            num_repeats = self.geometry.chunk_length - size if size > 1 else 0
            padding = (0, -width % PATCH, 0, -height % PATCH, 0, num_repeats)
            chunk = F.pad(chunk, padding, mode="replicate")
            chunks.append(self.encode_chunk(chunk).float())
        latents = self.normalize_latents(torch.cat(chunks, dim=2))
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
        """Re-generate a video from `latents` `[B, 8, n, h, w]`.

        `.sample` of the result: `[B, 3, F, H, W]`, float32, in [-1, 1].
        `num_frames`: frames 0 .. num_frames - 1 of the video (default: all that the latents stand
        for).
        `frame_times`: instead, any real times in frames from the start of the video (`[F]`):
        between frames, before the first, after the last, a sparse few. `height`, `width`: crop to
        these pixels (default 8 h, 8 w).
        `num_inference_steps`: Euler steps, 1 is a single forward pass. Raises ValueError for what
        cannot be decoded.
        """
        times, height, width = self._check_decode(latents, num_frames, frame_times, height, width)
        chunk_index, local_times = self.geometry.locate(times, latents.shape[2])
        video = latents.new_empty(
            (latents.shape[0], 3, len(times), height, width), dtype=torch.float32
        )
        decoder = ChunkDecoder(self, num_inference_steps, generator)
        for index in chunk_index.unique().tolist():
            chunk = latents[:, :, 2 * index : 2 * index + 2]
            following = latents[:, :, 2 * index + 2 : 2 * index + 3]
            wanted = (chunk_index == index).nonzero()[:, 0]
            # Choice: at most k + 1 frames are generated together; more times make more groups. The
            # cost of attention grows with the square of their number.
            for group in wanted.split(self.geometry.chunk_length):
                sample = decoder.decode(index, chunk, following, local_times[group])
                video[:, :, group.to(video.device)] = sample[..., :height, :width]
        return DecoderOutput(sample=video) if return_dict else (video,)

    def _check_decode(
        self,
        latents: torch.Tensor,
        num_frames: int | None,
        frame_times: torch.Tensor | Sequence[float] | None,
        height: int | None,
        width: int | None,
    ) -> tuple[torch.Tensor, int, int]:
        height, width = check_latents(latents, self.config.latent_channels, height, width)
        if frame_times is not None:
            if num_frames is not None:
                raise ValueError("give num_frames or frame_times, not both")
            times = torch.as_tensor(frame_times, dtype=torch.float32).cpu()
            if times.ndim != 1 or len(times) == 0:
                raise ValueError(
                    f"frame_times are a list of at least one time, got shape {list(times.shape)}"
                )
            if not torch.isfinite(times).all():
                raise ValueError(
                    "frame_times must be finite numbers, in frames from the start of the video"
                )
            return times, height, width
        if num_frames is None:
            num_frames = self.geometry.max_num_frames(latents.shape[2])
        self.geometry.check_num_frames(num_frames, latents.shape[2])
        return torch.arange(num_frames, dtype=torch.float32), height, width

    def forward(
        self,
        sample: torch.Tensor,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode `sample` `[B, 3, T, H, W]`: the reconstruction, of the same shape."""
        latents = self.encode(sample, return_dict=False)[0]
        return self.decode(
            latents,
            num_frames=sample.shape[2],
            height=sample.shape[3],
            width=sample.shape[4],
            num_inference_steps=num_inference_steps,
            generator=generator,
            return_dict=return_dict,
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


def _precondition(
    timestep: torch.Tensor, standard_deviation: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior gain and what it leaves open (standard deviation), `[B, 1, 1, 1, 1]` each."""
    t = timestep.float().view(-1, 1, 1, 1, 1)
    gain = posterior_gain(timestep, standard_deviation).view(-1, 1, 1, 1, 1)
    return gain, standard_deviation * (1 - gain * (1 - t)).clamp_min(0).sqrt()


def check_video(video: torch.Tensor) -> None:
    """ValueError unless `video` is float `[B, 3, T, H, W]`, finite, in [-1, 1] (1.5 passes)."""
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(
            f"a video is [B, 3, T, H, W] with every size at least 1, got {list(video.shape)}"
        )
    if not video.is_floating_point():
        raise ValueError(
            f"a video is float in [-1, 1], got {video.dtype}: uint8 frames / 127.5 - 1"
        )
    largest = video.abs().max().item()
    if not largest <= 1.5:
        raise ValueError(
            f"a video is in [-1, 1], got values up to {largest:g}: 0-255 frames / 127.5 - 1"
        )


def check_latents(
    latents: torch.Tensor, channels: int, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Height and width, where not given, of the video of `latents` `[B, channels, n, h, w]`.

    Raises ValueError for another shape, for values that are not finite, and for a size that these
    latents are not of.
    """
    if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
        raise ValueError(f"latents are [B, {channels}, n, h, w], got {list(latents.shape)}")
    if not torch.isfinite(latents).all():
        raise ValueError(
            "latents hold values that are not finite: they are damaged, encode the video again"
        )
    rows, columns = latents.shape[-2:]
    height, width = height or PATCH * rows, width or PATCH * columns
    if not (
        PATCH * (rows - 1) < height <= PATCH * rows
        and PATCH * (columns - 1) < width <= PATCH * columns
    ):
        raise ValueError(
            f"latents of {rows} x {columns} are a video of up to {PATCH * rows} x "
            f"{PATCH * columns} pixels, got height {height}, width {width}"
        )
    return height, width
