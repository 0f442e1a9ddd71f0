"""The first stage of a model with shortcuts: its picture codec, on pictures alone.

Starts as principal components of 8 x 8 patches and least squares from each 3 x 3 neighbourhood of
their codes; then both halves are trained together. Every draw follows from (seed, step).
"""

import math
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from regen.data.batches import PictureBatches, to_float
from regen.models.picture import PictureCodec, convolve, repeat_edges, to_patches
from regen.training.averages import make_averages
from regen.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from regen.training.least_squares import (
    components,
    least_squares,
    neighbourhoods,
    rows,
    set_conv,
    set_synthesis,
)
from regen.training.loading import TimedLoader
from regen.training.muon import Muon
from regen.training.optimizer import learning_rate_factor
from regen.training.parallel import anywhere, everywhere
from regen.training.stopping import StopSignals

LEARNING_RATE = 1.2e-3
WARMUP_STEPS = 100
COOLDOWN_SHARE = 0.8
EMA_DECAY = 0.998
NUM_INIT_BATCHES = 250
# Choice: a fifth of the picture stage's batches go without the codes that only a video has room
# for. An image alone is z_c, and must decode too.
FEWER_CODES_SHARE = 0.2
# Choice: the picture stage adds noise of deviation 0.02 to the codes. They may then be rounded, or
# come from a generator.
CODE_NOISE = 0.02
MAX_GRADIENT_NORM = 1.0


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


def make_optimizer(picture: PictureCodec) -> Muon:
    """Muon on the networks' matrices, AdamW on their vectors, both at a tenth on linear decoding.

    Choice: the picture codec is trained with Muon. At equal time it gained half as much again as
    AdamW (docs/log.md).
    """
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for network in (picture.encoder, picture.decoder):
        for parameter in network.parameters():
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "muon": True, "scale": 1.0},
        {"params": vectors, "muon": False, "scale": 1.0},
        {"params": list(picture.synthesis.parameters()), "muon": False, "scale": 0.1},
    ]
    return Muon(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)


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
    Every process does the same work, so that all end with the same weights.
    """
    device, num_steps = accelerator.device, len(batches)
    init_picture(picture, (batches[step] for step in range(NUM_INIT_BATCHES)))
    picture.to(device).requires_grad_(True)
    picture.analysis.requires_grad_(False)
    linear = tuple(value.detach().clone() for value in picture.synthesis.parameters())
    assert len(linear) == 2
    optimizer = make_optimizer(picture)
    ema = make_averages(picture, EMA_DECAY)
    with accelerator.main_process_first():
        checkpoint, _ = latest_checkpoint(folder)
    step = load_checkpoint(checkpoint, picture, ema, optimizer)[0] if checkpoint else 0
    loader = TimedLoader(batches, range(step, num_steps), num_workers)
    is_main = accelerator.is_main_process
    with StopSignals() as stop, closing(iter(loader)) as stream:
        bar = tqdm(stream, "pictures", num_steps, initial=step, unit="step", disable=not is_main)
        for frames in bar:
            generator = torch.Generator().manual_seed(batches.seed * 10**9 + step)
            with accelerator.autocast():
                loss = picture_loss(
                    picture, to_float(frames).to(device), linear, num_fewer, generator
                )
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(picture.parameters(), MAX_GRADIENT_NORM)
            value = float(loss.detach())
            if not math.isfinite(value + float(norm)):
                raise ValueError(
                    f"the loss of the picture stage is {value}, the gradients' norm {float(norm)} "
                    f"at step {step}: look for "
                    f"damaged pictures in --data; the last checkpoint in {folder} is intact"
                )
            for group in optimizer.param_groups:
                factor = learning_rate_factor(step, num_steps, WARMUP_STEPS, COOLDOWN_SHARE)
                group["lr"] = LEARNING_RATE * group["scale"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(picture.parameters())
            step += 1
            if step % 50 == 0:
                bar.set_postfix_str(f"error over linear coding's {value:.3f}")
            is_stopping = anywhere(stop.received is not None, accelerator)
            if step % checkpoint_every == 0 or step == num_steps or is_stopping:
                save_checkpoint(
                    folder,
                    step,
                    picture,
                    ema,
                    optimizer,
                    rank=accelerator.process_index,
                    all_agree=partial(everywhere, accelerator=accelerator),
                )
            if is_stopping:
                stop.raise_received()
                raise SystemExit("regen: another process of the run was told to stop")
    ema.copy_to(picture.parameters())
    picture.requires_grad_(False)
