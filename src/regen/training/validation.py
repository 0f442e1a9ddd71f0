"""Validation of a run: one-step reconstructions of held-out clips, measured and shown."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from regen.chunking import to_float
from regen.data.clips import BadClipError, Clip
from regen.evaluation.metrics import psnr, ssim
from regen.evaluation.sheets import write_sheet
from regen.perceptual.lpips import LPIPS
from regen.perceptual.weights import WeightsAbsent

NUM_SHOWN = 4  # clips on a sample sheet


def validation_chunks(
    clips: Sequence[Clip], num_frames: int, bad: list[str], size: int = 256
) -> Iterator[torch.Tensor]:
    """The middle of each clip, centre-cropped: float `[1, 3, <= num_frames, <= size, <= size]`.

    A clip that cannot be read is left out, and its line added to `bad`.
    """
    for clip in clips:
        start = max(0, (clip.num_frames - num_frames) // 2)
        stop = min(start + num_frames, clip.num_frames)
        try:
            chunk = np.stack(clip.read(range(start, stop)))
        except BadClipError as error:
            bad.append(str(error))
            continue
        height, width = (min(size, side) for side in chunk.shape[1:3])
        top, left = (chunk.shape[1] - height) // 2, (chunk.shape[2] - width) // 2
        crop = torch.from_numpy(chunk[:, top : top + height, left : left + width])
        yield to_float(crop).permute(3, 0, 1, 2)[None]


@torch.no_grad()
def validate(
    reconstruct: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    clips: Sequence[Clip],
    num_frames: int,
    device: torch.device,
    bad: list[str],
    sheet: Path | None = None,
) -> dict[str, float]:
    """PSNR in dB, SSIM, and LPIPS (AlexNet) where its weights are installed, of one-step
    reconstructions: of all frames, and PSNR by their position.

    Mean over frames, then clips; `frames/..._00` is of frame 0 of all clips that have one; {} where
    no clip could be read. Lines of those that could not are added to `bad`. Writes a sheet of the
    first clips of one size, where it is asked.
    """
    values: list[torch.Tensor] = []
    similarities: list[torch.Tensor] = []
    distances: list[float] = []
    try:
        lpips = LPIPS("alex").to(device)
    except WeightsAbsent:
        lpips = None
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    for chunk in validation_chunks(clips, num_frames, bad):
        chunk = chunk.to(device)
        reconstruction = reconstruct(chunk, torch.Generator().manual_seed(0))
        values.append(psnr(reconstruction, chunk)[0].cpu())
        similarities.append(ssim(reconstruction, chunk)[0].cpu())
        if lpips is not None:
            frames = (one[0].transpose(0, 1) for one in (reconstruction, chunk))
            distances.append(float(lpips(*frames).mean()))
        if len(shown) < NUM_SHOWN and (not shown or chunk.shape == shown[0][0].shape):
            shown.append((chunk.cpu(), reconstruction.cpu()))
    if not values:
        return {}
    if sheet is not None:
        write_sheet(sheet, *(torch.cat(parts) for parts in zip(*shown, strict=True)))
    means = {
        "validation/psnr": float(np.mean([value.mean() for value in values])),
        "validation/psnr_first_frame": float(np.mean([value[0] for value in values])),
        "validation/psnr_last_frame": float(np.mean([value[-1] for value in values])),
        "validation/ssim": float(np.mean([value.mean() for value in similarities])),
    }
    if distances:
        means["validation/lpips"] = float(np.mean(distances))
    for position in range(max(map(len, values))):
        those = [value[position] for value in values if len(value) > position]
        means[f"frames/psnr_{position:02d}"] = float(np.mean(those))
    return means
