"""The re-generative decoder (Sec. 3.2, B.3): a diffusion transformer on 8 x 8 pixel patches.

In: noisy video `[B, 3, F, H, W]`, diffusion `timestep` `[B]` in [0, 1] (1 = noise), conditioning
`[B, F, h, w, D]`. Out: the prediction `[B, 3, F, H, W]`. No positional encoding besides the
conditioning, neither in space nor in time.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_utils import get_parameter_dtype
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from regen.chunking import PATCH

# On a CPU two matrix products and a softmax train 3 to 4 times faster than the fused kernel up to
# about this many tokens (bf16, 4 heads of 64: 144 tokens 36 against 128 ms, 576 tokens even).
SHORT_SEQUENCE = 256


def timestep_embedding(timestep: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoidal embedding of 1000 * `timestep` `[B]`: `[B, dim]`, float32."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timestep.device) / half)
    angles = 1000 * timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class AttentionProcessor:
    """Calls the attention back end that `set_attention_backend` chose (diffusers' dispatcher)."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[B, N, heads, head_dim]` each -> the same shape.

        `attn_mask`: bool, broadcast to `[B, heads, N, N]`; False: this key is not seen.
        """
        short_on_cpu = query.device.type == "cpu" and query.shape[1] <= SHORT_SEQUENCE
        if self._attention_backend is None and short_on_cpu:
            query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if attn_mask is not None:
                scores = scores.masked_fill(~attn_mask, -math.inf)
            return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2)
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attn_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class Attention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over `[B, N, D]`.

    Choice: queries and keys are RMS-normalised. It keeps bfloat16 stable.
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    processor: AttentionProcessor

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm_q = nn.Parameter(torch.ones(dim // num_heads))
        self.norm_k = nn.Parameter(torch.ones(dim // num_heads))
        self.set_processor(AttentionProcessor())  # type: ignore[operator]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = rearrange(
            self.to_qkv(hidden_states),
            "b n (three k d) -> three b n k d",
            three=3,
            k=self.num_heads,
        )
        query = F.rms_norm(query, query.shape[-1:], self.norm_q.to(query.dtype), 1e-6)
        key = F.rms_norm(key, key.shape[-1:], self.norm_k.to(key.dtype), 1e-6)
        return self.to_out(rearrange(self.processor(query, key, value), "b n k d -> b n (k d)"))


class FeedForward(nn.Module):
    """Linear - GELU - Linear, with `conv` a convolution before the GELU that starts as identity.

    Choice: the tiny preset has a depthwise 3 x 3 convolution within each frame, as in SANA's
    Mix-FFN. Without a positional encoding attention cannot tell a left neighbour from a right one;
    the convolution can, at any size.
    """

    def __init__(self, dim: int, hidden_dim: int, conv: bool) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, hidden_dim)
        self.conv = (
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim) if conv else None
        )
        self.proj_out = nn.Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.proj_in(hidden_states)  # [B, F, h, w, hidden]
        if self.conv is not None:
            num_frames = hidden_states.shape[1]
            frames = rearrange(hidden_states, "b f h w d -> (b f) d h w")  # channels-last in memory
            hidden_states = rearrange(self.conv(frames), "(b f) d h w -> b f h w d", f=num_frames)
        return self.proj_out(F.gelu(hidden_states, approximate="tanh"))


class DiTBlock(nn.Module):
    """adaLN-Zero block (Peebles & Xie, 2023) on tokens `[B, F, h, w, D]`.

    `window`: attention sees all frames of squares of window x window positions, moved by half a
    window (cyclically) when `shifted`; None is the paper's full spatiotemporal attention.
    `framewise`: attention stays within each frame.
    Choice: attention of a small preset stays within windows. The cost of full attention grows with
    the square of the number of tokens.
    Choice: with content that moves, attention stays within a frame. All frames are made from the
    same latents and the same first frame; so what a frame is does not depend on which others are
    asked for.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        mlp_conv: bool,
        window: int | None,
        shifted: bool,
        shared_modulation: bool,
        framewise: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.framewise = framewise
        self.shift = window // 2 if window and shifted else 0
        self.attn = Attention(dim, num_heads)
        self.ff = FeedForward(dim, int(dim * mlp_ratio), mlp_conv)
        if shared_modulation:
            # Choice: the blocks of the tiny preset share one modulation, to which each adds a
            # vector (PixArt-alpha). One of its own would be more than a third of a block.
            self.modulation = nn.Parameter(torch.zeros(6 * dim))
        else:
            self.modulation_proj = nn.Linear(dim, 6 * dim)
        self.shared_modulation = shared_modulation

    def attend(self, hidden_states: torch.Tensor) -> torch.Tensor:
        num_frames, height, width = hidden_states.shape[1:4]
        if self.window is None:
            tokens = self.attn(rearrange(hidden_states, "b f h w d -> b (f h w) d"))
            return rearrange(tokens, "b (f h w) d -> b f h w d", f=num_frames, h=height)
        if self.shift:
            hidden_states = hidden_states.roll((-self.shift, -self.shift), (2, 3))
        if self.framewise:
            split, merged = "b f (r p) (c q) d", "(b f r c) (p q) d"
        else:
            split, merged = "b f (r p) (c q) d", "(b r c) (f p q) d"
        sizes = {"p": self.window, "q": self.window}
        tokens = self.attn(rearrange(hidden_states, f"{split} -> {merged}", **sizes))
        sizes |= {"f": num_frames, "r": height // self.window, "c": width // self.window}
        tokens = rearrange(tokens, f"{merged} -> {split}", **sizes)
        return tokens.roll((self.shift, self.shift), (2, 3)) if self.shift else tokens

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """`temb`: timestep embedding `[B, D]` after SiLU, or the shared modulation `[B, 6 D]`."""
        modulation = (
            temb + self.modulation if self.shared_modulation else self.modulation_proj(temb)
        )
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rearrange(
            modulation.to(hidden_states.dtype), "b (six d) -> six b 1 1 1 d", six=6
        )
        dim = hidden_states.shape[-1:]
        normed = F.layer_norm(hidden_states, dim, eps=1e-6) * (1 + scale_msa) + shift_msa
        hidden_states = hidden_states + gate_msa * self.attend(normed)
        normed = F.layer_norm(hidden_states, dim, eps=1e-6) * (1 + scale_mlp) + shift_mlp
        return hidden_states + gate_mlp * self.ff(normed)


class REGENDiT(nn.Module):
    """Diffusion transformer on pixel patches; `_init_weights` says what starts at zero, and why."""

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        mlp_conv: bool,
        window: int | None,
        shared_modulation: bool,
        in_channels: int = 3,
        framewise: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.patch_embed = nn.Linear(in_channels * PATCH**2, dim)
        self.time_embed = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.shared_modulation = nn.Linear(dim, 6 * dim) if shared_modulation else None
        self.blocks = nn.ModuleList(
            DiTBlock(
                dim,
                num_heads,
                mlp_ratio,
                mlp_conv,
                window,
                index % 2 == 1,
                shared_modulation,
                framewise,
            )
            for index in range(num_layers)
        )
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, 3 * PATCH**2)
        self.proj_spread = nn.Linear(dim, 1) if framewise else None
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zeros: list[Any] = [self.final_modulation, self.proj_out]  # the output starts at 0,
        zeros += [self.proj_spread] if self.proj_spread is not None else []
        zeros += [block.modulation_proj for block in self.blocks if self.shared_modulation is None]
        zeros += [self.shared_modulation] if self.shared_modulation is not None else []
        for module in zeros:  # and every block as the identity (adaLN-Zero)
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, FeedForward) and module.conv is not None:
                nn.init.dirac_(module.conv.weight, groups=module.conv.groups)
                nn.init.zeros_(module.conv.bias)  # type: ignore[arg-type]

    def forward(
        self,
        noisy_video: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: torch.Tensor,
        context: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prediction and, where framewise, one number for each patch `[B, F, h, w]`.

        `context` `[B, n, h, w, D]`: tokens that go with those of the video (Tab. 3).
        """
        patches = rearrange(noisy_video, "b c f (h p) (w q) -> b f h w (c p q)", p=PATCH, q=PATCH)
        hidden_states = self.patch_embed(patches) + conditioning  # [B, F, h, w, D]
        hidden_states = hidden_states.to(conditioning.dtype)
        num_frames = hidden_states.shape[1]
        if context is not None:
            hidden_states = torch.cat([context.to(hidden_states.dtype), hidden_states], dim=1)
        temb = timestep_embedding(timestep, 256).to(get_parameter_dtype(self))
        if self.proj_spread is not None:
            # Choice: where pictures are drafted at t = 1 alone, that timestep is not embedded.
            # What the draft learns then serves all timesteps; they learn how they differ from it.
            temb = temb * (timestep < 1)[:, None]
        temb = F.silu(self.time_embed(temb))  # [B, D]
        modulation = temb if self.shared_modulation is None else self.shared_modulation(temb)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden_states = checkpoint(block, hidden_states, modulation, use_reentrant=False)
            else:
                hidden_states = block(hidden_states, modulation)
        hidden_states = hidden_states[:, -num_frames:]
        shift, scale = rearrange(self.final_modulation(temb), "b (two d) -> two b 1 1 1 d", two=2)
        normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=1e-6)
        patches = self.proj_out(normed * (1 + scale) + shift)  # [B, F, h, w, 192]
        video = rearrange(patches, "b f h w (c p q) -> b c f (h p) (w q)", p=PATCH, q=PATCH)
        spread = None if self.proj_spread is None else self.proj_spread(normed.detach())[..., 0]
        return video, spread
