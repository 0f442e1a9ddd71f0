"""Latent conditioning: content-aware positional encoding (Sec. 3.2, Eq. 5), and its ablation.

In: raw latents and real-valued `frame_times`. Out: one vector of width D per token,
`[B, F, h, w, D]`. It is all that tells the DiT where and when a token is, which is why the decoder
runs at any size and at any point in time. The ablation (Tab. 3) has fixed positions instead, and
gives the latents as further tokens.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import nn


class ModulatedSIREN(nn.Module):
    """M(f; z_m): sine layers over time, phase scaled and shifted at each position by z_m(y, x).

    Choice: z_m scales and shifts the phase of each layer; time enters as f / k. The paper says that
    z_m modulates the SIREN, not how.

    Runs in float32: a phase in bfloat16 is off by omega / 256. Initialisation after Sitzmann et
    al., 2020, Sec. 3.2.
    """

    def __init__(
        self, latent_channels: int, width: int, num_layers: int, omega: float, ratio: int
    ) -> None:
        super().__init__()
        self.omega = omega
        self.ratio = ratio
        layers = [nn.Linear(1 if i == 0 else width, width) for i in range(num_layers)]
        modulations = [nn.Linear(latent_channels, 2 * width) for _ in range(num_layers)]
        self.layers, self.modulations = nn.ModuleList(layers), nn.ModuleList(modulations)
        for index, layer in enumerate(layers):
            bound = 1.0 if index == 0 else (6 / width) ** 0.5 / omega
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(
                layer.bias, -1.0 if index == 0 else -bound, 1.0 if index == 0 else bound
            )
        for modulation in modulations:
            nn.init.normal_(modulation.weight, std=0.02)
            nn.init.zeros_(modulation.bias)

    def forward(self, frame_times: torch.Tensor, motion_latents: torch.Tensor) -> torch.Tensor:
        """`frame_times` `[B, F]` in frames, z_m `[B, h, w, 8]` -> `[B, F, h, w, width]`."""
        with torch.autocast(frame_times.device.type, enabled=False):
            weight_dtype = get_parameter_dtype(self)
            motion = motion_latents.to(weight_dtype)[:, None]  # [B, 1, h, w, 8]
            hidden_states = (frame_times.float() / self.ratio).to(weight_dtype)[
                :, :, None, None, None
            ]
            for layer, modulation in zip(self.layers, self.modulations, strict=True):
                scale, shift = modulation(motion).chunk(2, dim=-1)
                phase = layer(hidden_states) * (1 + scale) + shift  # [B, F, h, w, width]
                hidden_states = torch.sin(self.omega * phase.float()).to(weight_dtype)
        return hidden_states


class LatentConditioning(nn.Module):
    """Eq. 5: z_e(f, y, x) = RMSNorm(Linear(z_c(y, x) + M(f; z_m(y, x)))), + concatenates."""

    def __init__(
        self,
        latent_channels: int,
        dim: int,
        siren_width: int,
        siren_num_layers: int,
        omega: float,
        ratio: int,
    ) -> None:
        super().__init__()
        self.siren = ModulatedSIREN(latent_channels, siren_width, siren_num_layers, omega, ratio)
        self.proj = nn.Linear(latent_channels + siren_width, dim)
        # Choice: z_c and the SIREN's output begin with equal parts of z_e. There are ten times as
        # many of the latter's channels, and what z_c says would be learned late.
        with torch.no_grad():
            self.proj.weight[:, :latent_channels] *= (siren_width / latent_channels / 2) ** 0.5
        self.norm = nn.Parameter(torch.ones(dim))

    def forward(self, latents: torch.Tensor, frame_times: torch.Tensor) -> torch.Tensor:
        """Raw latents `[B, 8, 2, h, w]`, `frame_times` `[B, F]` in frames -> `[B, F, h, w, D]`."""
        content, motion = latents.permute(2, 0, 3, 4, 1)  # [B, h, w, 8] each
        moving = self.siren(frame_times, motion)  # [B, F, h, w, S]
        content = content[:, None].expand(-1, moving.shape[1], -1, -1, -1).to(moving.dtype)
        expanded = self.proj(torch.cat([content, moving], dim=-1))
        return F.rms_norm(expanded, expanded.shape[-1:], self.norm.to(expanded.dtype), 1e-6)


class InContextConditioning(nn.Module):
    """The paper's ablation (Sec. 5, Tab. 3): latents are tokens of their own, in the sequence.

    All tokens have a fixed sine-cosine positional encoding of (time, row, column), as DiT's.

    Choice: in-context tokens of z_c and z_m stand at the times 0 and k and carry a learned vector
    of their kind. The paper says that they are concatenated, not how they are placed.
    """

    def __init__(self, latent_channels: int, dim: int, ratio: int) -> None:
        super().__init__()
        self.dim, self.ratio = dim, ratio
        self.proj = nn.Linear(latent_channels, dim)
        self.kind = nn.Parameter(0.02 * torch.randn(2, dim))

    def forward(
        self, latents: torch.Tensor, frame_times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw latents `[B, 8, 2, h, w]`, `frame_times` `[B, F]` in frames -> two tensors.

        What is added to the tokens of the video, `[B, F, h, w, D]`, and the tokens of the latents,
        which come before those, `[B, 2, h, w, D]`.
        """
        dtype, size = get_parameter_dtype(self), latents.shape[3:]
        times = torch.tensor([[0.0, self.ratio]], device=latents.device)
        tokens = self.proj(latents.permute(0, 2, 3, 4, 1).to(dtype))
        tokens = tokens + self.kind[:, None, None] + sine_cosine(times, size, self.dim).to(dtype)
        return sine_cosine(frame_times, size, self.dim).to(dtype), tokens


def sine_cosine(frame_times: torch.Tensor, size: Sequence[int], dim: int) -> torch.Tensor:
    """Of time, row and column: times `[B, F]` in frames, `size` (h, w) -> `[B, F, h, w, dim]`.

    A quarter of `dim` for the time, the rest shared by row and column (Vaswani et al., 2017).
    """
    in_time = 2 * (dim // 8)
    in_rows = 2 * ((dim - in_time) // 4)
    rows, columns = (
        torch.arange(count, device=frame_times.device, dtype=torch.float32) for count in size
    )
    shape = (*frame_times.shape, *size)
    parts = (
        _waves(frame_times, in_time)[:, :, None, None],
        _waves(rows, in_rows)[:, None],
        _waves(columns, dim - in_time - in_rows),
    )
    return torch.cat([part.expand(*shape, -1) for part in parts], dim=-1)


def _waves(position: torch.Tensor, dim: int) -> torch.Tensor:
    """`[...]` -> `[..., dim]`, float32."""
    half = dim // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=position.device) / half)
    angles = position.float()[..., None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
