"""The text-to-video transformer (Sec. 4.2): an MMDiT on REGEN latents.

In: noisy latents `[B, 8, n, h, w]`, normalised once more by this model's own statistics, even
latent frames content and odd ones motion, an image one content frame alone; diffusion `timestep`
`[B]`, or `[B, n]` for each latent frame, in [0, 1] (1 = noise); text embeddings `[B, L, E]`. Out:
eps - x, shaped as the latents. Any n, h, w.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import nn

from regen.latent_statistics import LatentStatistics
from regen.model.dit import AttentionProcessor, FeedForward, timestep_embedding

MIN_DEVIATION = 1e-3  # of a channel that hardly varies in the data
Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [n * h * w, 1, head_dim / 2]


def latent_positions(num_latent_frames: int, height: int, width: int) -> torch.Tensor:
    """Of each token its chunk, whether it is motion (1), row and column: `[n * h * w, 4]`."""
    frame = torch.arange(num_latent_frames)
    chunk, kind = frame // 2, frame % 2
    rows, columns = torch.arange(height), torch.arange(width)
    grid = torch.cartesian_prod(frame, rows, columns)  # [n h w, 3]
    return torch.stack([chunk[grid[:, 0]], kind[grid[:, 0]], grid[:, 1], grid[:, 2]], dim=1)


def rotary_embedding(positions: torch.Tensor, axes_dims: Sequence[int], theta: float) -> Rotation:
    """Rotations of the pairs of a head's channels, a part of them for each axis of `positions`.

    RoFormer (Su et al., 2021) on several axes. `positions` `[N, axes]`; float32.
    """
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = theta ** -(torch.arange(0, dim, 2, device=positions.device) / dim)
        angles.append(positions[:, axis, None].float() * frequencies)
    every = torch.cat(angles, dim=1)[:, None]
    return every.cos(), every.sin()


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn the pairs (i, i + head_dim / 2) of `[B, N, heads, head_dim]`."""
    first, second = states.float().chunk(2, dim=-1)
    cos, sin = rotation
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(states.dtype)


class JointAttention(nn.Module, AttentionModuleMixin):
    """Attention over text and latent tokens together, each with its own projections (SD3).

    Queries and keys are RMS-normalised; those of latents are rotated by their positions. Text has
    none: it is at 0 on every axis, and tells latents where that is. `context_pre_only`: text is
    attended to, and does not attend.
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    processor: AttentionProcessor

    def __init__(self, dim: int, num_heads: int, context_pre_only: bool) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads, self.context_pre_only = num_heads, context_pre_only
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm_q = nn.Parameter(torch.ones(head_dim))
        self.norm_k = nn.Parameter(torch.ones(head_dim))
        self.add_kv_proj = nn.Linear(dim, 2 * dim)
        self.norm_added_k = nn.Parameter(torch.ones(head_dim))
        if not context_pre_only:
            self.add_q_proj = nn.Linear(dim, dim)
            self.norm_added_q = nn.Parameter(torch.ones(head_dim))
            self.to_add_out = nn.Linear(dim, dim)
        self.set_processor(AttentionProcessor())  # type: ignore[operator]

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return rearrange(states, "b n (k d) -> b n k d", k=self.num_heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotation: Rotation,
        attn_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents `[B, N, D]` and text `[B, L, D]` -> the same; no text where it is only seen."""
        query, key, value = map(self._heads, self.to_qkv(hidden_states).chunk(3, dim=-1))
        text_key, text_value = map(
            self._heads, self.add_kv_proj(encoder_hidden_states).chunk(2, dim=-1)
        )
        query, key = rotate(_rms(query, self.norm_q), rotation), _rms(key, self.norm_k)
        keys = torch.cat([_rms(text_key, self.norm_added_k), rotate(key, rotation)], dim=1)
        values = torch.cat([text_value, value], dim=1)
        if self.context_pre_only:
            attended = self.processor(query, keys, values, attn_mask)
            return self.to_out(rearrange(attended, "b n k d -> b n (k d)")), None
        text_query = _rms(self._heads(self.add_q_proj(encoder_hidden_states)), self.norm_added_q)
        attended = self.processor(torch.cat([text_query, query], dim=1), keys, values, attn_mask)
        joint = rearrange(attended, "b n k d -> b n (k d)")
        text, latents = joint.split([text_query.shape[1], query.shape[1]], dim=1)
        return self.to_out(latents), self.to_add_out(text)


def _rms(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(states, states.shape[-1:], weight.to(states.dtype), 1e-6)


class JointTransformerBlock(nn.Module):
    """MMDiT block (Esser et al., 2024), adaLN-Zero, on latents `[B, n, P, D]` and text `[B, L, D]`.

    P tokens of each of n latent frames, which have a modulation of their own each.
    `context_pre_only`: the last block, after which the text is not needed.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, context_pre_only: bool) -> None:
        super().__init__()
        self.attn = JointAttention(dim, num_heads, context_pre_only)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.ff = FeedForward(dim, int(dim * mlp_ratio), conv=False)
        self.context_pre_only = context_pre_only
        self.context_modulation = nn.Linear(dim, (2 if context_pre_only else 6) * dim)
        self.context_ff = (
            None if context_pre_only else FeedForward(dim, int(dim * mlp_ratio), conv=False)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        context_temb: torch.Tensor,
        rotation: Rotation,
        attn_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`temb` `[B, n, D]` of the latent frames, `context_temb` `[B, D]` of the text."""
        num_frames = hidden_states.shape[1]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = rearrange(
            self.modulation(temb), "b n (six d) -> six b n 1 d", six=6
        )
        context = rearrange(
            self.context_modulation(context_temb), "b (m d) -> m b 1 d", d=temb.shape[-1]
        )
        attended, text = self.attn(
            rearrange(_norm(hidden_states) * (1 + scale) + shift, "b n p d -> b (n p) d"),
            _norm(encoder_hidden_states) * (1 + context[1]) + context[0],
            rotation,
            attn_mask,
        )
        attended = rearrange(attended, "b (n p) d -> b n p d", n=num_frames)
        hidden_states = hidden_states + gate * attended
        normed = _norm(hidden_states) * (1 + scale_mlp) + shift_mlp
        hidden_states = hidden_states + gate_mlp * self.ff(normed)
        if self.context_ff is None or text is None:
            return hidden_states, encoder_hidden_states
        encoder_hidden_states = encoder_hidden_states + context[2] * text
        normed = _norm(encoder_hidden_states) * (1 + context[4]) + context[3]
        return hidden_states, encoder_hidden_states + context[5] * self.context_ff(normed)


def _norm(states: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(states, states.shape[-1:], eps=1e-6)


class RegenTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin, LatentStatistics):
    """The MMDiT of Sec. 4.2 as a diffusers model.

    `num_layers` blocks of `num_attention_heads` x `attention_head_dim` on patches of `patch_size` x
    `patch_size` latent positions. `joint_attention_dim`: width of the text embeddings.
    `axes_dims_rope`: a head's channels that tell chunk, kind (content or motion), row and column.
    `sample_height`, `sample_width` (in latents) and `sample_frames` (of the video): what it was
    trained on, and what a pipeline makes if nobody says otherwise. `shared_noise`: see
    `share_noise`.

    Raises ValueError for a configuration that cannot work.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["JointTransformerBlock"]
    _repeated_blocks = ["JointTransformerBlock"]
    _skip_layerwise_casting_patterns = ["_embed", "norm", "modulation"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 8,
        num_layers: int = 33,
        attention_head_dim: int = 128,
        num_attention_heads: int = 16,
        joint_attention_dim: int = 4096,
        mlp_ratio: float = 4.0,
        axes_dims_rope: Sequence[int] = (16, 16, 48, 48),
        rope_theta: float = 10000.0,
        sample_height: int = 24,
        sample_width: int = 40,
        sample_frames: int = 132,
        shared_noise: float = 0.0,
    ) -> None:
        super().__init__()
        is_even = all(dim > 0 and dim % 2 == 0 for dim in axes_dims_rope)
        if len(axes_dims_rope) != 4 or not is_even or sum(axes_dims_rope) != attention_head_dim:
            raise ValueError(
                "axes_dims_rope are 4 even numbers (chunk, kind, height, width) that sum to "
                f"attention_head_dim {attention_head_dim}, got {tuple(axes_dims_rope)}"
            )
        dim = num_attention_heads * attention_head_dim
        self.patch_embed = nn.Linear(in_channels * patch_size**2, dim)
        # Choice: a latent frame's embedding of timestep and text also tells whether it is content
        # or motion. The two have other statistics, which the modulation of every block can follow.
        self.kind_embed = nn.Embedding(2, dim)
        self.time_embed = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.context_embed = nn.Linear(joint_attention_dim, dim)
        self.pooled_embed = nn.Sequential(
            nn.Linear(joint_attention_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(dim, num_attention_heads, mlp_ratio, index == num_layers - 1)
            for index in range(num_layers)
        )
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, in_channels * patch_size**2)
        # Choice: the text-to-video model normalises latents by the statistics of its own data.
        # Those of the embedder are of other clips: where little moves, motion latents have a
        # quarter of their standard deviation, and would drown in the noise.
        self.add_latent_statistics(in_channels)
        self.gradient_checkpointing = False
        self._init_weights()

    def load_lora_adapter(self, source: Any, prefix: str | None = "transformer", **kw: Any) -> Any:
        """diffusers' own, of safetensors only."""
        return super().load_lora_adapter(source, prefix, **(kw | {"use_safetensors": True}))

    def set_latent_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Mean and standard deviation `[8, 2]` (content, motion) of the latents to be learned, as
        the embedder gives them; channels that hardly vary count as varying by `MIN_DEVIATION`."""
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std.clamp_min(MIN_DEVIATION))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.kind_embed.weight, std=0.02)
        zeros: list[Any] = [self.final_modulation, self.proj_out]  # the output starts at 0,
        for block in self.transformer_blocks:  # and every block as the identity (adaLN-Zero)
            zeros += [block.modulation, block.context_modulation]
        for module in zeros:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def share_noise(self, noise: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`noise` `[B, 8, n, h, w]` of latent frames `first` and on, as this model knows it.

        Content latents have `shared_noise` of their variance in common with the first of them.
        """
        # Choice: content latents share noise, as frames do in PYoCo (Ge et al., 2023). Content
        # hardly changes from chunk to chunk: like noise makes like objects.
        part, content = self.config.shared_noise, slice(first % 2, None, 2)
        if not part or noise[:, :, content].shape[2] < 2:
            return noise
        shared, own = noise[:, :, content][:, :, :1], noise[:, :, content][:, :, 1:]
        mixed = part**0.5 * shared + (1 - part) ** 0.5 * own
        noise = noise.clone()
        noise[:, :, content] = torch.cat([shared, mixed], dim=2)
        return noise

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """eps - x of the noisy latents `hidden_states` `[B, 8, n, h, w]`: `.sample`, of that shape.

        `encoder_hidden_states` `[B, L, E]`; `encoder_attention_mask` bool `[B, L]`, False: filling.
        `timestep` `[B]`, or `[B, n]`: latent frames that are given have 0. Raises ValueError for
        shapes that do not fit.
        """
        self._check(hidden_states, encoder_hidden_states, timestep, encoder_attention_mask)
        batch, _, num_frames, height, width = hidden_states.shape
        patch = self.config.patch_size
        # Choice: sizes that the patch does not divide are filled with zeros inside. So every size
        # that the embedder makes can be generated.
        padded = F.pad(hidden_states, (0, -width % patch, 0, -height % patch))
        rows, columns = padded.shape[-2] // patch, padded.shape[-1] // patch
        patches = rearrange(
            padded.to(self.dtype), "b c n (h p) (w q) -> b n (h w) (c p q)", p=patch, q=patch
        )
        tokens = self.patch_embed(patches)  # [B, n, h w, D]
        context, pooled = self._embed_text(encoder_hidden_states, encoder_attention_mask)
        temb, context_temb = self._embed_timestep(timestep, pooled, num_frames)
        positions = latent_positions(num_frames, rows, columns).to(tokens.device)
        rotation = rotary_embedding(positions, self.config.axes_dims_rope, self.config.rope_theta)
        attn_mask = None
        if encoder_attention_mask is not None:
            latents_mask = encoder_attention_mask.new_ones(batch, num_frames * rows * columns)
            attn_mask = torch.cat([encoder_attention_mask, latents_mask], dim=1)[:, None, None]
        for block in self.transformer_blocks:
            inputs = (tokens, context, temb, context_temb, rotation, attn_mask)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens, context = self._gradient_checkpointing_func(block, *inputs)
            else:
                tokens, context = block(*inputs)
        shift, scale = rearrange(self.final_modulation(temb), "b n (two d) -> two b n 1 d", two=2)
        patches = self.proj_out(_norm(tokens) * (1 + scale) + shift)  # [B, n, h w, 8 p q]
        sample = rearrange(
            patches, "b n (h w) (c p q) -> b c n (h p) (w q)", h=rows, p=patch, q=patch
        )[..., :height, :width]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _embed_text(
        self, embeddings: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text `[B, L, E]` -> its tokens `[B, L, D]`, and one vector of all of it `[B, D]`."""
        # Choice: text embeddings are RMS-normalised first. Encoders differ in scale by far.
        normed = F.rms_norm(embeddings.float(), embeddings.shape[-1:], eps=1e-6)
        weight = torch.ones_like(normed[..., :1]) if mask is None else mask[..., None].float()
        # Choice: the mean of a text's embeddings goes with the timestep into the modulation. SD3
        # takes CLIP's pooled vector there; other encoders have none.
        mean = (normed * weight).sum(1) / weight.sum(1).clamp_min(1)
        return self.context_embed(normed.to(self.dtype)), self.pooled_embed(mean.to(self.dtype))

    def _embed_timestep(
        self, timestep: torch.Tensor, pooled: torch.Tensor, num_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the latent frames `[B, n, D]` and of the text `[B, D]`, after SiLU."""
        if timestep.ndim == 1:
            timestep = timestep[:, None].expand(-1, num_frames)
        # Choice: the text is modulated by the largest timestep of its latents. That is the one of
        # what is generated, beside which given latent frames stand at 0.
        every = torch.cat([timestep, timestep.amax(1, keepdim=True)], dim=1)  # [B, n + 1]
        embedded = timestep_embedding(every.flatten(), 256).to(pooled.dtype)
        embedded = self.time_embed(embedded).unflatten(0, every.shape) + pooled[:, None]
        kind = torch.arange(num_frames, device=timestep.device) % 2
        return F.silu(embedded[:, :-1] + self.kind_embed(kind)), F.silu(embedded[:, -1])

    def _check(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        timestep: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        channels, text_dim = self.config.in_channels, self.config.joint_attention_dim
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
            raise ValueError(f"latents are [B, {channels}, n, h, w], got {list(latents.shape)}")
        batch, num_frames = latents.shape[0], latents.shape[2]
        if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != text_dim:
            raise ValueError(
                f"text embeddings are [{batch}, L, {text_dim}], got {list(text.shape)}: "
                "take those of the text encoder that the model was trained with"
            )
        if mask is not None and (mask.shape != text.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"encoder_attention_mask is bool {list(text.shape[:2])}, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        if timestep.shape not in ((batch,), (batch, num_frames)):
            raise ValueError(
                f"timestep is [{batch}] or [{batch}, {num_frames}], got {list(timestep.shape)}"
            )
