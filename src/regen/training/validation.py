"""Validation of a run: one-step reconstructions of held-out clips, measured and shown."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from regen.data.batches import to_float
from regen.data.clips import Clip
from regen.evaluation.metrics import psnr
from regen.evaluation.sheets import write_sheet
from regen.models.autoencoder import AutoencoderREGEN

NUM_SHOWN = 4  # clips on a sample sheet


def validation_chunks(
    clips: list[Clip], chunk_length: int, size: int = 256
) -> Iterator[torch.Tensor]:
    """The middle chunk of each clip, centre-cropped: float `[1, 3, <= k + 1, <= size, <= size]`."""
    for clip in clips:
        start = max(0, (clip.num_frames - chunk_length) // 2)
        stop = min(start + chunk_length, clip.num_frames)
        chunk = np.stack(clip.read(range(start, stop)))
        height, width = (min(size, side) for side in chunk.shape[1:3])
        top, left = (chunk.shape[1] - height) // 2, (chunk.shape[2] - width) // 2
        crop = torch.from_numpy(chunk[:, top : top + height, left : left + width])
        yield to_float(crop).permute(3, 0, 1, 2)[None]


@torch.no_grad()
def validate(
    model: AutoencoderREGEN, clips: list[Clip], device: torch.device, sheet: Path
) -> dict[str, float]:
    """PSNR in dB of one-step reconstructions: of all frames, the first and the last.

    Mean over frames, then clips. Writes a sheet of the first clips of one size. Runs in the
    precision of the weights.
    """
    model.eval()
    values: list[torch.Tensor] = []
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    for chunk in validation_chunks(clips, model.geometry.chunk_length):
        chunk = chunk.to(device)
        generator = torch.Generator().manual_seed(0)
        reconstruction = model(chunk, generator=generator).sample
        values.append(psnr(reconstruction, chunk)[0].cpu())
        if len(shown) < NUM_SHOWN and (not shown or chunk.shape == shown[0][0].shape):
            shown.append((chunk.cpu(), reconstruction.cpu()))
    write_sheet(sheet, *(torch.cat(parts) for parts in zip(*shown, strict=True)))
    model.train()
    return {
        "validation/psnr": float(np.mean([value.mean() for value in values])),
        "validation/psnr_first_frame": float(np.mean([value[0] for value in values])),
        "validation/psnr_last_frame": float(np.mean([value[-1] for value in values])),
    }


def append_record(path: Path, record: dict[str, float]) -> None:
    """Add one line to a JSON-lines file."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def drop_records_after(path: Path, step: int) -> None:
    """Keep the lines of a JSON-lines file up to `step`: a resumed run writes the others again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line that a kill cut short
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
