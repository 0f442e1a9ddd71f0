"""From a run's state to a model folder: averaged weights in bfloat16, with latent statistics."""

import shutil
from pathlib import Path

import torch

from regen.data.batches import TrainingBatches, to_float
from regen.loading import Autoencoder
from regen.model.autoencoder import AutoencoderREGEN
from regen.training.chunk_store import ChunkBatches
from regen.training.parallel import local


@torch.no_grad()
def measure_latents(
    model: AutoencoderREGEN, batches: TrainingBatches | ChunkBatches, num_batches: int = 50
) -> None:
    """Set the latent statistics of `model` from the first training batches.

    Mean and deviation per channel, content and motion apart; content also of images.
    """
    model.eval()
    content, motion = [], []
    for step in range(num_batches):
        batch = batches[step]
        chunk, known = batch["chunk"], batch.get("motion")
        assert isinstance(chunk, torch.Tensor)
        video = to_float(chunk).to(model.device)
        if isinstance(known, torch.Tensor):
            latents = model.encode_chunk(video, known.to(model.device)).float()
        else:
            latents = model.encode_chunk(video).float()
        content.append(latents[:, :, 0].transpose(0, 1).flatten(1))  # [8, B h w]
        if latents.shape[2] == 2:
            motion.append(latents[:, :, 1].transpose(0, 1).flatten(1))
    model.train()
    for kind, values in enumerate((content, motion)):
        if values:
            every = torch.cat(values, dim=1)
            model.latents_mean[:, kind] = every.mean(1)
            model.latents_std[:, kind] = every.std(1).clamp_min(1e-4)  # a channel that is constant


def export(
    model: Autoencoder,
    state: dict[str, torch.Tensor],
    batches: TrainingBatches | ChunkBatches | None,
    folder: Path,
) -> None:
    """Write `state` (averaged weights) with its latent statistics as a diffusers model folder.

    All of it is rounded to bfloat16; the statistics are those of the rounded weights on `batches`
    (None: those in `state`; MAGVIT-v2 has none). `model` gives configuration and device; it stays
    as it is.
    """
    exported = type(model).from_config(model.config)
    exported.load_state_dict(state)
    exported.to(local(next(model.parameters())).device)
    for parameter in exported.parameters():
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    if batches is not None and isinstance(exported, AutoencoderREGEN):
        measure_latents(exported, batches)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        exported.bfloat16().save_pretrained(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for file in temporary.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
