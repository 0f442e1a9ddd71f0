"""The start of the linear shortcuts: the best linear codec of the same latent budget.

Encoder: principal components of the first frame, then of what those do not predict linearly of the
other frames, whitened. Decoder: least squares from each 3 x 3 neighbourhood of codes. All of it
follows from second moments, summed over training batches: memory does not grow with their number.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from regen.data.batches import to_float
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.shortcut import (
    PATCH,
    LinearDecoder,
    LinearEncoder,
    cosine_basis,
    repeat_edges,
    to_patches,
)

RIDGE = 1e-4  # on whitened codes, whose own variance is 1
FLOOR = 1e-6  # of a variance over a patch, where the data has fewer directions than channels


def _rows(chunk: torch.Tensor) -> torch.Tensor:
    """uint8 `[B, 3, k + 1, S, S]` -> patches and a 1, float `[B S/8 S/8, (k + 1) 192 + 1]`."""
    rows = rearrange(to_patches(to_float(chunk)), "b d h w -> (b h w) d")
    return F.pad(rows, (0, 1), value=1.0)


def _principal(covariance: torch.Tensor, num_components: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top directions `[n, dim]` of `covariance` `[dim, dim]` and the deviation along each `[n]`."""
    variance, directions = torch.linalg.eigh(covariance)
    keep = slice(-num_components, None)
    deviation = variance[keep].flip(0).clamp_min(FLOOR).sqrt()
    return directions[:, keep].T.flip(0), deviation


def _set_conv(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """A 3 x 3 convolution that looks at its middle place only."""
    assert conv.bias is not None
    conv.weight.zero_()
    conv.weight[:, :, 1, 1] = weight
    conv.bias.copy_(bias)


def _init_encoder(encoder: LinearEncoder, chunks: Sequence[torch.Tensor]) -> None:
    moments: torch.Tensor | float = 0.0
    num_rows = 0
    for chunk in chunks:
        rows = _rows(chunk)
        moments = moments + (rows.T @ rows).double()
        num_rows += len(rows)
    assert isinstance(moments, torch.Tensor)
    moments = moments / num_rows  # [(k + 1) 192 + 1] ^ 2
    channels, values = encoder.content.out_channels, 3 * PATCH**2
    mean, rest_mean = moments[-1, :values], moments[-1, values:-1]
    first_covariance = moments[:values, :values] - torch.outer(mean, mean)
    cross = moments[:values, values:-1] - torch.outer(mean, rest_mean)
    rest_covariance = moments[values:-1, values:-1] - torch.outer(rest_mean, rest_mean)

    content, content_std = _principal(first_covariance, channels)
    codes_variance = content @ first_covariance @ content.T + FLOOR * torch.eye(channels)
    prediction = torch.linalg.solve(codes_variance, content @ cross)  # [8, k 192]
    left = rest_covariance - prediction.T @ codes_variance @ prediction
    motion, motion_std = _principal(left, channels)
    # motion code = motion (rest - rest_mean - prediction^T content (first - mean)) / motion_std
    of_first = -motion @ prediction.T @ content
    content_weight = content / content_std[:, None]
    motion_weight = torch.cat([of_first, motion], dim=1) / motion_std[:, None]
    means = moments[-1, :-1]
    _set_conv(encoder.content, content_weight, -content_weight @ mean)
    _set_conv(encoder.motion, motion_weight, -motion_weight @ means)


def _neighbourhoods(encoder: LinearEncoder, chunk: torch.Tensor) -> torch.Tensor:
    """Codes of each 3 x 3 neighbourhood and a 1: `[B * h * w, 9 * 16 + 1]`."""
    latents = encoder(to_float(chunk))
    stacked = repeat_edges(rearrange(latents, "b c n h w -> b (n c) h w"))
    features = rearrange(F.unfold(stacked, 3), "b d hw -> (b hw) d")
    return F.pad(features, (0, 1), value=1.0)


def _init_decoder(
    encoder: LinearEncoder, decoder: LinearDecoder, chunks: Sequence[torch.Tensor]
) -> float:
    size = 9 * 2 * encoder.content.out_channels + 1
    gram = torch.zeros(size, size, dtype=torch.float64)
    moments: torch.Tensor | float = 0.0
    num_rows = 0
    for chunk in chunks:
        features, rows = _neighbourhoods(encoder, chunk), _rows(chunk)[:, :-1]
        gram += (features.T @ features).double()
        moments = moments + (features.T @ rows).double()
        num_rows += len(rows)
    assert isinstance(moments, torch.Tensor)
    gram = gram / num_rows + RIDGE * torch.eye(size)
    solution = torch.linalg.solve(gram, moments / num_rows).float()  # [9 * 16 + 1, (k + 1) 192]
    errors = [
        (_rows(chunk)[:, :-1] - _neighbourhoods(encoder, chunk) @ solution).square().mean().item()
        for chunk in chunks
    ]
    length = decoder.num_cosines  # as many as frames, so that the basis is square
    frames = rearrange(solution, "n (t d) -> t n d", t=length)
    times = torch.arange(length, dtype=torch.float32)[None]
    basis = cosine_basis(times, length, decoder.ratio)[0]
    coefficients = torch.linalg.solve(basis, frames.flatten(1)).view_as(frames)  # [J, n, 192]
    synthesis = decoder.synthesis
    assert synthesis.bias is not None
    synthesis.bias.copy_(coefficients[:, -1].flatten())
    kernel = rearrange(coefficients[:, :-1], "j (c y x) d -> (j d) c y x", y=3, x=3)
    synthesis.weight.copy_(kernel)
    return sum(errors) / len(errors)


@torch.no_grad()
def init_linear_shortcuts(model: AutoencoderREGEN, chunks: Sequence[torch.Tensor]) -> float:
    """Set the shortcuts of `model` from `chunks` (uint8 `[B, 3, k + 1, S, S]` each, of one shape).

    Returns the mean squared error of that codec on them, in [-1, 1] units.
    """
    assert model.linear_encoder is not None and model.linear_decoder is not None and len(chunks)
    _init_encoder(model.linear_encoder, chunks)
    return _init_decoder(model.linear_encoder, model.linear_decoder, chunks)
