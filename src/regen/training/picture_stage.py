"""The first stage of a model with shortcuts: its picture codec, on pictures alone.

Starts as principal components of 8 x 8 patches and least squares from each 3 x 3 neighbourhood of
their codes; then both halves are trained together. Every draw follows from (seed, step).
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator

from regen.data.batches import PictureBatches, to_float
from regen.models.picture import PictureCodec, convolve, repeat_edges, to_patches
from regen.training.least_squares import (
    components,
    least_squares,
    neighbourhoods,
    rows,
    set_conv,
    set_synthesis,
)
from regen.training.stage import make_optimizer, run_stage

NUM_INIT_BATCHES = 250
# Choice: a fifth of the picture stage's batches go without the codes that only a video has room
# for. An image alone is z_c, and must decode too.
FEWER_CODES_SHARE = 0.2
# Choice: the picture stage adds noise of deviation 0.02 to the codes. They may then be rounded, or
# come from a generator.
CODE_NOISE = 0.02


@torch.no_grad()
def init_picture(picture: PictureCodec, frames: Iterable[torch.Tensor]) -> None:
    """Set the linear half of `picture` from `frames` (uint8 `[B, 3, S, S]` each)."""
    videos = [to_float(batch)[:, :, None] for batch in frames]
    patches = [to_patches(video) for video in videos]
    set_conv(picture.analysis, *components(map(rows, patches), picture.analysis.out_channels))
    set_synthesis(
        picture.synthesis,
        least_squares(
            (neighbourhoods(convolve(picture.analysis, values)), rows(values)) for values in patches
        ),
    )


def picture_loss(
    picture: PictureCodec,
    frames: torch.Tensor,
    linear: tuple[torch.Tensor, torch.Tensor],
    num_fewer: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Squared error over that of the linear start (`linear`: its synthesis), mean over samples.

    `frames` `[B, 3, S, S]` in [-1, 1]; a share of the batches goes without all but `num_fewer`
    codes.
    """
    codes = picture.encode(frames)
    codes = codes + CODE_NOISE * torch.randn(codes.shape, generator=generator).to(codes)
    if float(torch.rand((), generator=generator)) < FEWER_CODES_SHARE:
        codes = torch.cat([codes[:, :num_fewer], torch.zeros_like(codes[:, num_fewer:])], dim=1)
    errors = (picture.decode(codes) - frames).square().mean(dim=(1, 2, 3))
    with torch.no_grad():
        patches = to_patches(frames[:, :, None])
        start = torch.nn.functional.conv2d(
            repeat_edges(convolve(picture.analysis, patches)), *linear
        )
        of_start = (start - patches).square().mean(dim=(1, 2, 3)) + 1e-4
    return (errors / of_start).mean()


def train_picture(
    picture: PictureCodec,
    num_fewer: int,
    batches: PictureBatches,
    accelerator: Accelerator,
    folder: Path,
    checkpoint_every: int,
    num_workers: int,
) -> None:
    """Bring `picture` through all of `batches`; goes on from the newest checkpoint in `folder`.

    `num_fewer`: codes that a picture alone has (those of z_c). Ends with the averaged weights.
    """
    init_picture(picture, (batches[step] for step in range(NUM_INIT_BATCHES)))
    picture.to(accelerator.device).requires_grad_(True)
    picture.analysis.requires_grad_(False)
    weight, bias = (value.detach().clone() for value in picture.synthesis.parameters())

    def loss(frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        frames = to_float(frames).to(accelerator.device)
        return picture_loss(picture, frames, (weight, bias), num_fewer, generator)

    optimizer = make_optimizer((picture.encoder, picture.decoder), picture.synthesis)
    run_stage(
        "pictures", picture, optimizer, loss, batches, accelerator, folder, checkpoint_every,
        num_workers,
    )  # fmt: skip
