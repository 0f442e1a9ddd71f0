"""The start of the linear shortcuts: the best linear codec of the same latent budget, solved from training batches.

Encoder: principal components of the first frame, then of what those do not predict linearly of the other frames, whitened.
Decoder: least squares from each 3 x 3 neighbourhood of codes. Choice; see `regen.models.shortcut`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange

from regen.models.autoencoder import AutoencoderREGEN
from regen.models.shortcut import PATCH, cosine_basis, repeat_edges, to_patches


def _principal(rows: torch.Tensor, num_components: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top directions `[n, dim]` of centred `rows` and the deviation along each."""
    variance, directions = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    keep = slice(-num_components, None)
    deviation = variance[keep].flip(0).clamp_min(1e-8).sqrt()
    return directions[:, keep].T.flip(0).float(), deviation.float()


@torch.no_grad()
def init_linear_shortcuts(model: AutoencoderREGEN, chunks: Iterable[torch.Tensor]) -> float:
    """Set the shortcuts of `model` from `chunks` (float `[B, 3, k + 1, S, S]` each); returns the codec's MSE on them."""
    assert model.linear_encoder is not None and model.linear_decoder is not None
    channels, length = model.config.latent_channels, model.geometry.chunk_length
    chunk = torch.cat(list(chunks))
    patches = to_patches(chunk)  # [B, (k+1) 192, h, w]
    rows = rearrange(patches, "b d h w -> (b h w) d")
    values = 3 * PATCH**2
    first, rest = rows[:, :values], rows[:, values:]
    mean = first.mean(0)
    content, content_std = _principal(first - mean, channels)
    codes = (first - mean) @ content.T
    with_one = torch.cat([codes, torch.ones_like(codes[:, :1])], dim=1)
    prediction = torch.linalg.lstsq(with_one, rest).solution  # [9, k 192]
    motion, motion_std = _principal(rest - with_one @ prediction, channels)

    content_weight = content / content_std[:, None]
    motion_weight = torch.cat([-motion @ prediction[:-1].T @ content, motion], dim=1) / motion_std[:, None]
    motion_bias = motion @ (prediction[:-1].T @ (content @ mean) - prediction[-1]) / motion_std
    for conv, weight, bias in (
        (model.linear_encoder.content, content_weight, -content_weight @ mean),
        (model.linear_encoder.motion, motion_weight, motion_bias),
    ):
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = weight
        assert conv.bias is not None
        conv.bias.copy_(bias)

    latents = model.linear_encoder(chunk)
    stacked = repeat_edges(rearrange(latents, "b c n h w -> b (n c) h w"))
    features = rearrange(F.unfold(stacked, 3), "b d hw -> (b hw) d")
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    gram = (features.T @ features / len(features)).double()
    gram += 1e-4 * torch.eye(len(gram))
    moments = (features.T @ rows / len(rows)).double()
    solution = torch.linalg.solve(gram, moments).float()  # [9 * 16 + 1, (k + 1) 192]
    error = (rows - features @ solution).square().mean().item()
    frames = rearrange(solution, "n (t d) -> t n d", t=length)
    times = torch.arange(length, dtype=torch.float32)[None]
    basis = cosine_basis(times, length, model.temporal_compression_ratio)[0]
    coefficients = torch.linalg.solve(basis, frames.flatten(1)).view_as(frames)  # [J, n, 192]
    synthesis = model.linear_decoder.synthesis
    assert synthesis.bias is not None
    synthesis.bias.copy_(coefficients[:, -1].flatten())
    kernel = rearrange(coefficients[:, :-1], "j (c y x) d -> (j d) c y x", y=3, x=3)
    synthesis.weight.copy_(kernel)
    return error
