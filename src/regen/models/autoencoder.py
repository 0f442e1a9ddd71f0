"""`AutoencoderREGEN`: Figure 2 as a diffusers model.

Videos are float `[B, 3, T, H, W]` in [-1, 1], any T, H, W >= 1; latents are
`[B, 8, n, ceil(H/8), ceil(W/8)]`, normalised to about zero mean and unit deviation per channel,
content (even index) and motion (odd index) apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from regen.chunking import ChunkGeometry, stretch
from regen.flow import (
    EPSILON_MAX_TIMESTEP,
    PREDICTION_TYPES,
    euler_sample,
    posterior_gain,
    predicted_sample,
)
from regen.models.conditioning import InContextConditioning, LatentConditioning
from regen.models.dit import REGENDiT
from regen.models.encoder import REGENEncoder
from regen.models.latent_statistics import LatentStatistics
from regen.models.motion import MOTION_CHANNELS
from regen.models.picture import PATCH
from regen.models.shortcut import LinearDecoder, MotionShortcut
from regen.models.temporal import TemporalCodec

# Deviation of pixels about grey, and about the shortcut's picture (on training crops: 27 dB).
PIXEL_DEVIATION = 0.5
SHORTCUT_DEVIATION = 0.09
CONDITIONING_TYPES = ("content_aware", "in_context")
MAX_COSINES = 16  # of the linear decoder, which says little: a code a place


@dataclass
class REGENEncoderOutput(BaseOutput):
    """`latents`: `[B, 8, n, h, w]`, normalised."""

    latents: torch.Tensor


class AutoencoderREGEN(ModelMixin, AutoencoderMixin, ConfigMixin, LatentStatistics):
    """Causal 3D convolutional encoder and diffusion transformer decoder (Sec. 3).

    Each chunk of k + 1 frames becomes two latent frames; a last chunk of one frame (an image is
    just that) becomes one.
    `temporal_compression_ratio` is k; `chunk_ratio` see `set_chunk_ratio`. `encoder_*`: see
    `REGENEncoder`. The decoder is `num_layers` blocks of `num_attention_heads` x
    `attention_head_dim`; `attention_window` None is the paper's full attention; `motion_shortcut`
    see `regen.models.shortcut`, `picture_width` and `picture_blocks` (encoder, decoder)
    `regen.models.picture`, `temporal_*` `regen.models.temporal` (0 coefficients: a linear code in
    its place); `prediction_type` see `regen.flow`.
    `conditioning_type` "in_context" is the paper's ablation (Tab. 3) instead of Eq. 5.

    Raises ValueError for a configuration that cannot work.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock", "ResidualBlock"]
    _repeated_blocks = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        temporal_compression_ratio: int = 8,
        latent_channels: int = 8,
        encoder_block_out_channels: Sequence[int] = (128, 256, 512, 768, 768),
        encoder_layers_per_block: int = 2,
        encoder_strides: Sequence[Sequence[int]] = ((1, 2), (2, 2), (2, 2), (2, 1), (1, 1)),
        encoder_patch_size: int = 1,
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
        motion_shortcut: bool = False,
        picture_width: int = 128,
        picture_blocks: Sequence[int] = (3, 4),
        temporal_coefficients: int = 0,
        temporal_width: int = 136,
        temporal_blocks: Sequence[int] = (2, 5),
        prediction_type: str = "sample",
        conditioning_type: str = "content_aware",
        chunk_ratio: int | None = None,
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
        if motion_shortcut and prediction_type == "epsilon":
            raise ValueError(
                "motion_shortcut adds to the predicted video: "
                "use prediction_type sample or v_prediction"
            )
        temporal, spatial = 1, encoder_patch_size
        for time_stride, space_stride in encoder_strides:
            temporal, spatial = temporal * time_stride, spatial * space_stride
        if (temporal, spatial) != (temporal_compression_ratio, PATCH):
            raise ValueError(
                f"encoder_strides and encoder_patch_size compress {temporal}x in time and "
                f"{spatial}x in space, expected {temporal_compression_ratio}x and {PATCH}x"
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
            in_channels=6 if motion_shortcut else 3,
        )
        self.shortcut: MotionShortcut | None = None
        self.linear_decoder: LinearDecoder | None = None
        if motion_shortcut:
            num_encoder_blocks, num_decoder_blocks = picture_blocks
            codec = None
            if temporal_coefficients:
                num_temporal_encoder_blocks, num_temporal_decoder_blocks = temporal_blocks
                codec = TemporalCodec(
                    temporal_compression_ratio,
                    latent_channels - MOTION_CHANNELS,
                    latent_channels + MOTION_CHANNELS,
                    temporal_coefficients,
                    temporal_width,
                    (num_temporal_encoder_blocks, num_temporal_decoder_blocks),
                )
            else:
                self.linear_decoder = LinearDecoder(
                    2 * latent_channels - MOTION_CHANNELS,
                    temporal_compression_ratio,
                    min(temporal_compression_ratio + 1, MAX_COSINES),
                )
            self.shortcut = MotionShortcut(
                latent_channels,
                temporal_compression_ratio,
                picture_width,
                (num_encoder_blocks, num_decoder_blocks),
                codec,
            )
            nn.init.zeros_(self.encoder.conv_out.weight)
            nn.init.zeros_(self.encoder.conv_out.bias)  # type: ignore[arg-type]
        # Choice: z_m of an image is a learned constant. The encoder makes none of one frame.
        self.image_motion_latents = nn.Parameter(torch.zeros(latent_channels))
        # Choice: latents are normalised by mean and deviation per channel, content and motion
        # apart. Their scales differ, and a generative model on the latents wants unit variance.
        self.register_buffer("latents_mean", torch.zeros(latent_channels, 2))
        self.register_buffer("latents_std", torch.ones(latent_channels, 2))

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

    def encode_chunk(self, chunk: torch.Tensor) -> torch.Tensor:
        """One chunk `[B, 3, n, H, W]` -> raw latents `[B, 8, 1 or 2, h, w]` (Eq. 1).

        n is 1, k + 1, or anything between, which counts as k + 1 frames in as much time.
        """
        latents = self.encoder(stretch(chunk, self.config.temporal_compression_ratio + 1))
        return latents if self.shortcut is None else latents + self.shortcut.encode(chunk)

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
        prior: torch.Tensor | None,
    ) -> torch.Tensor:
        """The network: x_t and raw latents `[B, 8, 2, h, w]` -> prediction `[B, 3, F, H, W]`.

        Sec. 3.2. `timestep` `[B]` in [0, 1]; `frame_times` `[B, F]` in frames from the start of the
        chunk; `prior` is `predict_shortcut`'s video of the same latents and times.
        """
        if self.config.prediction_type != "sample":
            output = self._network(noisy_video, prior, timestep, latents, frame_times)
            return output if prior is None else output - prior
        # Choice: a preconditioned x-prediction. The network sees x_t as far as it can be believed
        # (at t = 1 not at all: noise as strong as the conditioning is what it would have to learn
        # to ignore). Without shortcuts it adds to the posterior mean of grey pixels, with them to
        # the shortcuts' picture: what that leaves is no white noise, and should not start as one.
        trust = posterior_gain(timestep, PIXEL_DEVIATION).view(-1, 1, 1, 1, 1)
        noisy_input = trust * noisy_video
        output = self._network(noisy_input, prior, timestep, latents, frame_times).float()
        if prior is not None:
            return prior + SHORTCUT_DEVIATION * output
        t = timestep.float().view(-1, 1, 1, 1, 1)
        # What the Gaussian leaves open has variance deviation^2 (1 - trust (1 - t)).
        scale = PIXEL_DEVIATION * (1 - trust * (1 - t)).clamp_min(0).sqrt()
        return trust * noisy_video.float() + scale * output

    def predict_shortcut(
        self, latents: torch.Tensor, frame_times: torch.Tensor, is_image: bool = False
    ) -> torch.Tensor | None:
        """The shortcut's video `[B, 3, F, H, W]`, float32, from raw latents `[B, 8, 2, h, w]`.

        None in a model without. `frame_times` `[B, F]` in frames from the start of the chunk;
        `is_image`: the motion latent is the constant of images.
        """
        if self.shortcut is None:
            return None
        frame_times = self._stretched(frame_times)
        if self.linear_decoder is None:
            return self.shortcut(latents, frame_times, is_image)
        residual = self.linear_decoder(self.shortcut.codes(latents), frame_times)
        return self.shortcut(latents, frame_times) + residual.float()

    def _stretched(self, frame_times: torch.Tensor) -> torch.Tensor:
        """Times in frames of the chunks in use -> in frames of the k + 1 that the networks know."""
        ratio = self.config.temporal_compression_ratio / self.temporal_compression_ratio
        return ratio * frame_times

    def _network(
        self,
        noisy_video: torch.Tensor,
        prior: torch.Tensor | None,
        timestep: torch.Tensor,
        latents: torch.Tensor,
        frame_times: torch.Tensor,
    ) -> torch.Tensor:
        conditioning, context = self.conditioning(latents, self._stretched(frame_times)), None
        if isinstance(self.conditioning, InContextConditioning):
            context = self.conditioning.tokens(latents)
        video = noisy_video.to(self.dtype)
        if prior is not None:
            # Choice: the network sees the shortcut's picture beside the noise. It is to mend that
            # one.
            video = torch.cat([video, prior.to(video.dtype)], 1)
        return self.dit(video, timestep, conditioning, context)

    # -- the public pair ---------------------------------------------------------------------------

    @apply_forward_hook
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

    @apply_forward_hook
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
        times, height, width = self._check_decode(
            latents, num_frames, frame_times, height, width, num_inference_steps
        )
        raw_latents = self.denormalize_latents(latents).to(self.dtype)
        chunk_index, local_times = self.geometry.locate(times, latents.shape[2])
        video = latents.new_empty(
            (latents.shape[0], 3, len(times), height, width), dtype=torch.float32
        )
        for index in chunk_index.unique().tolist():
            chunk_latents = raw_latents[:, :, 2 * index : 2 * index + 2]
            wanted = (chunk_index == index).nonzero()[:, 0]
            # Choice: at most k + 1 frames are generated together; more times make more groups. The
            # cost of attention grows with the square of their number.
            for group in wanted.split(self.geometry.chunk_length):
                sample = self._decode_chunk(
                    chunk_latents, local_times[group], num_inference_steps, generator
                )
                video[:, :, group.to(video.device)] = sample[..., :height, :width].clamp(-1, 1)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def _decode_chunk(
        self,
        raw_latents: torch.Tensor,
        local_times: torch.Tensor,
        num_inference_steps: int,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        is_image = raw_latents.shape[2] == 1
        raw_latents = self.fill_motion(raw_latents)
        batch, _, _, rows, columns = raw_latents.shape
        window = self.config.attention_window or 1
        raw_latents = F.pad(
            raw_latents, (0, -columns % window, 0, -rows % window, 0, 0), mode="replicate"
        )
        frame_times = local_times.to(raw_latents.device, torch.float32).expand(batch, -1)
        shape = (batch, 3, len(local_times), *(PATCH * size for size in raw_latents.shape[-2:]))
        noise = randn_tensor(
            shape, generator=generator, device=raw_latents.device, dtype=torch.float32
        )
        prediction_type = self.config.prediction_type
        prior = self.predict_shortcut(raw_latents, frame_times, is_image)

        def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            video = noisy.to(self.dtype)
            output = self.predict(video, timestep, raw_latents, frame_times, prior)
            return predicted_sample(output, noisy, timestep, prediction_type)

        start = EPSILON_MAX_TIMESTEP if prediction_type == "epsilon" else 1.0
        return euler_sample(denoise, noise, num_inference_steps, start)

    def _check_decode(
        self,
        latents: torch.Tensor,
        num_frames: int | None,
        frame_times: torch.Tensor | Sequence[float] | None,
        height: int | None,
        width: int | None,
        num_inference_steps: int,
    ) -> tuple[torch.Tensor, int, int]:
        height, width = check_latents(latents, self.config.latent_channels, height, width)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is at least 1, got {num_inference_steps}")
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
            if name.startswith(("encoder.", "shortcut.", "latents_")):
                digest.update(f"{name}{list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().bfloat16().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]


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
