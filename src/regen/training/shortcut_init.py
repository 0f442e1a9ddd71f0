"""The start of the shortcuts: motion-compensated linear coding, solved on training batches.

Encoder: principal components of the first frame, whitened; then of what the warp leaves of the
others. Decoder: least squares from each 3 x 3 neighbourhood of codes. All of it follows from second
moments, summed over batches: memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from regen.data.batches import to_float
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.shortcut import PATCH, LinearDecoder, cosine_basis, repeat_edges, to_patches
from regen.training.objective import detail_weights

RIDGE = 1e-4  # on whitened codes, whose own variance is 1
FLOOR = 1e-6  # of a variance over a patch, where the data has fewer directions than channels

Rows = tuple[torch.Tensor, torch.Tensor]  # features `[n, d]`, targets `[n, e]`


def _rows(planes: torch.Tensor) -> torch.Tensor:
    return rearrange(planes, "b d h w -> (b h w) d")


def _neighbourhoods(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[B, n, h, w]` of each 3 x 3 neighbourhood and a 1: `[B h w, 9 n + 1]`."""
    features = rearrange(F.unfold(repeat_edges(codes), 3), "b d hw -> (b hw) d")
    return F.pad(features, (0, 1), value=1.0)


def _weights(chunk: torch.Tensor) -> torch.Tensor:
    """Root of each row's weight, `[B h w, 1]`: the training loss weighs samples by detail."""
    places = chunk.shape[-1] * chunk.shape[-2] // PATCH**2
    return detail_weights(chunk).sqrt().repeat_interleave(places)[:, None]


def _components(rows: Iterable[torch.Tensor], num_components: int) -> Rows:
    """(`[n, d]` directions over their deviations, offsets `[n]`): whitened principal components."""
    moments: torch.Tensor | float = 0.0
    for values in rows:
        values = F.pad(values, (0, 1), value=1.0)
        moments = moments + (values.T @ values).double() / len(values)
    assert isinstance(moments, torch.Tensor)
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    variance, directions = torch.linalg.eigh(moments[:-1, :-1] - torch.outer(mean, mean))
    deviation = variance[-num_components:].flip(0).clamp_min(FLOOR).sqrt()
    weight = directions[:, -num_components:].T.flip(0) / deviation[:, None]
    return weight, -weight @ mean


def _least_squares(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Map `[d, e]` from features to targets."""
    gram: torch.Tensor | float = 0.0
    cross: torch.Tensor | float = 0.0
    for features, targets in batches:
        gram = gram + (features.T @ features).double() / len(features)
        cross = cross + (features.T @ targets).double() / len(features)
    assert isinstance(gram, torch.Tensor) and isinstance(cross, torch.Tensor)
    ridge = RIDGE * gram[-1, -1] * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, cross).float()


def _set(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    assert conv.bias is not None
    conv.weight.copy_(weight.view_as(conv.weight))
    conv.bias.copy_(bias)


def _set_synthesis(conv: nn.Conv2d, solution: torch.Tensor) -> None:
    """`solution` `[9 n + 1, e]` as a 3 x 3 convolution."""
    _set(
        conv, rearrange(solution[:-1], "(c y x) d -> d c y x", y=3, x=3).contiguous(), solution[-1]
    )


def _set_decoder(decoder: LinearDecoder, solution: torch.Tensor) -> None:
    """`solution` `[9 n + 1, (k + 1) 192]`, by frame, as amplitudes of the decoder's cosines."""
    length = decoder.num_cosines  # as many as frames, so that the basis is square
    frames = rearrange(solution, "n (t d) -> t (n d)", t=length)
    times = torch.arange(length, dtype=torch.float32)[None]
    basis = cosine_basis(times, length, decoder.ratio)[0]
    amplitudes = torch.linalg.solve(basis, frames)
    _set_synthesis(decoder.synthesis, rearrange(amplitudes, "j (n d) -> n (j d)", n=len(solution)))


@torch.no_grad()
def init_shortcuts(
    model: AutoencoderREGEN,
    chunks: Sequence[torch.Tensor],
    progress: Callable[[Sequence[torch.Tensor]], Iterable[torch.Tensor]] = iter,
) -> float:
    """Set the shortcuts of `model` from `chunks` (uint8 `[B, 3, k + 1, S, S]` each).

    Returns the mean over samples of that codec's PSNR on them, in dB. `progress` wraps the long
    loop, over the motion of all chunks.
    """
    shortcut, decoder = model.shortcut, model.linear_decoder
    assert shortcut is not None and decoder is not None and len(chunks)
    length = model.geometry.chunk_length

    def first_rows() -> Iterable[torch.Tensor]:
        for chunk in chunks:
            yield _rows(to_patches(to_float(chunk[:, :, :1])))

    _set(shortcut.content, *_components(first_rows(), shortcut.content.out_channels))

    def first_frames() -> Iterable[Rows]:
        for chunk in chunks:
            video = to_float(chunk)
            weights, first = _weights(video), to_patches(video[:, :, :1])
            features = _neighbourhoods(shortcut.content(first))
            yield weights * features, weights * _rows(first)

    _set_synthesis(shortcut.picture, _least_squares(first_frames()))

    times = torch.arange(length, dtype=torch.float32)
    latents: list[torch.Tensor] = []  # without the residual codes, which are still to be found

    def later_rows() -> Iterable[torch.Tensor]:
        for chunk in progress(chunks):
            video = to_float(chunk)
            latents.append(shortcut.encode(video))
            residual = video - shortcut(latents[-1], times.expand(len(video), -1))
            yield _rows(to_patches(residual[:, :, 1:]))

    _set(shortcut.residual, *_components(later_rows(), shortcut.residual.out_channels))

    def residuals() -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each batch: root of the weights, neighbourhoods of codes, what the warp leaves."""
        for chunk, raw in zip(chunks, latents, strict=True):
            video = to_float(chunk)
            residual = video - shortcut(raw, times.expand(len(video), -1))
            later = shortcut.residual(to_patches(residual[:, :, 1:]))
            codes = torch.cat([shortcut.codes(raw)[:, : -later.shape[1]], later], dim=1)
            yield _weights(video), _neighbourhoods(codes), _rows(to_patches(residual))

    solution = _least_squares(
        (weights * features, weights * rows) for weights, features, rows in residuals()
    )
    _set_decoder(decoder, solution)
    decibels = []
    for chunk, (_, features, rows) in zip(chunks, residuals(), strict=True):
        errors = (rows - features @ solution).square().unflatten(0, (len(chunk), -1)).mean((1, 2))
        decibels.append(-10 * torch.log10(errors / 4))
    return float(torch.cat(decibels).mean())
