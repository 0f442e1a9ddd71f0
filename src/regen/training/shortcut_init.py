"""The second start of the shortcuts, once pictures are coded: what the warp leaves of each chunk.

Encoder: a principal component of it. Decoder: least squares from each 3 x 3 neighbourhood of codes.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from einops import rearrange

from regen.data.batches import to_float
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.picture import PATCH, convolve, to_patches
from regen.models.shortcut import LinearDecoder, cosine_basis
from regen.training.least_squares import (
    components,
    least_squares,
    neighbourhoods,
    rows,
    set_conv,
    set_synthesis,
)
from regen.training.objective import detail_weights


def _weights(chunk: torch.Tensor) -> torch.Tensor:
    """Root of each row's weight, `[B h w, 1]`: the training loss weighs samples by detail."""
    places = chunk.shape[-1] * chunk.shape[-2] // PATCH**2
    return detail_weights(chunk).sqrt().repeat_interleave(places)[:, None]


def _set_decoder(decoder: LinearDecoder, solution: torch.Tensor, num_frames: int) -> None:
    """`solution` `[9 n + 1, (k + 1) 192]`, by frame, as amplitudes of the decoder's cosines."""
    frames = rearrange(solution, "n (t d) -> t (n d)", t=num_frames)
    times = torch.arange(num_frames, dtype=torch.float32)[None]
    basis = cosine_basis(times, decoder.num_cosines, decoder.ratio)[0]
    # Normal equations (of orthogonal columns): lstsq is not the same twice, to the last bit.
    amplitudes = torch.linalg.solve(basis.T @ basis, basis.T @ frames)
    set_synthesis(decoder.synthesis, rearrange(amplitudes, "j (n d) -> n (j d)", n=len(solution)))


@torch.no_grad()
def init_shortcuts(
    model: AutoencoderREGEN,
    chunks: Sequence[torch.Tensor],
    progress: Callable[[Sequence[torch.Tensor]], Iterable[torch.Tensor]] = iter,
) -> float:
    """Set residual and linear decoder of `model` from `chunks` (uint8 `[B, 3, k + 1, S, S]` each).

    Its picture codec is there already. Returns the mean over samples of the shortcuts' PSNR on
    them, in dB. `progress` wraps the long loop, over the motion of all chunks.
    """
    shortcut, decoder = model.shortcut, model.linear_decoder
    assert shortcut is not None and decoder is not None and len(chunks)
    code = shortcut.residual
    assert code is not None
    length = model.geometry.chunk_length
    times = torch.arange(length, dtype=torch.float32)
    latents: list[torch.Tensor] = []  # without the residual codes, which are still to be found
    seen: list[torch.Tensor] = []  # what is drawn of them

    def later_rows() -> Iterable[torch.Tensor]:
        for chunk in progress(chunks):
            video = to_float(chunk)
            latents.append(shortcut.encode(video))
            seen.append(shortcut(latents[-1], times.expand(len(video), -1)).half())
            yield rows(to_patches((video - seen[-1])[:, :, 1:]))

    set_conv(code, *components(later_rows(), code.out_channels))

    def residuals() -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each batch: the video, its codes, what the warp leaves."""
        for chunk, raw, picture in zip(chunks, latents, seen, strict=True):
            video = to_float(chunk)
            residual = video - picture
            later = convolve(code, to_patches(residual[:, :, 1:]))
            codes = torch.cat([shortcut.codes(raw)[:, : -later.shape[1]], later], dim=1)
            yield video, codes, residual

    def equations() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        for video, codes, residual in residuals():
            weights = _weights(video)
            yield weights * neighbourhoods(codes), weights * rows(to_patches(residual))

    solution = least_squares(equations())
    _set_decoder(decoder, solution, length)
    decibels = []
    for video, codes, residual in residuals():
        errors = residual - decoder(codes, times.expand(len(video), -1))
        decibels.append(-10 * torch.log10(errors.square().mean((1, 2, 3, 4)) / 4))
    return float(torch.cat(decibels).mean())
