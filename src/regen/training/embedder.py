"""What the loop asks of the embedder: its loss, its validation, its export."""

from dataclasses import dataclass
from pathlib import Path

import torch

from regen.data.batches import Batch, TrainingBatches, to_float
from regen.data.clips import Clip
from regen.flow import EPSILON_MAX_TIMESTEP
from regen.training.config import TrainConfig
from regen.training.export import export
from regen.training.objective import REGENObjective, draw_latent_noise, draw_timesteps
from regen.training.run import Run, step_seed
from regen.training.validation import validate

TASKS = ("image", "reconstruction", "interpolation", "extrapolation")


@dataclass
class EmbedderTask:
    """Train an `AutoencoderREGEN` on clips and photos (Sec. 3)."""

    config: TrainConfig
    objective: REGENObjective
    batches: TrainingBatches
    validation_clips: list[Clip]

    def batch_loss(self, run: Run, batch: Batch, rank: int) -> torch.Tensor:
        """Mean loss of a batch; its noise is that of `rank` and the run's step."""
        config, device = self.config, run.accelerator.device
        chunk, target, frame_times = batch["chunk"], batch["target"], batch["frame_times"]
        assert isinstance(chunk, torch.Tensor) and isinstance(target, torch.Tensor)
        assert isinstance(frame_times, torch.Tensor)
        chunk, target = to_float(chunk).to(device), to_float(target).to(device)
        generator = torch.Generator().manual_seed(step_seed(config.seed, rank, run.step))
        noise = torch.randn(target.shape, generator=generator).to(device)
        # Choice: noise prediction does not train at t = 1. It cannot be sampled from there.
        latest = EPSILON_MAX_TIMESTEP if config.prediction_type == "epsilon" else 1.0
        timestep = draw_timesteps(len(target), config.noise_only_share, generator, latest)
        timestep, latent_noise = timestep.to(device), None
        if config.latent_noise:
            latent_noise = draw_latent_noise(chunk, run.model.config["latent_channels"], generator)
            latent_noise = (config.latent_noise * latent_noise).to(device)
        with run.accelerator.autocast():
            losses = run.wrapped(
                chunk, target, frame_times.to(device), noise, timestep, latent_noise
            )
        run.monitor.add(str(batch["task"]), losses, timestep, latest)
        loss: torch.Tensor = losses.mean()
        return loss

    def validate(self, run: Run, sheet: Path | None) -> dict[str, float]:
        """PSNR in dB and SSIM of one-step reconstructions of the held-out clips."""
        if not self.validation_clips:
            return {}
        chunk_length, device = self.objective.model.geometry.chunk_length, run.accelerator.device
        reconstruct = self.objective.reconstruct
        own_sheet = sheet if run.accelerator.is_main_process else None
        return validate(reconstruct, self.validation_clips, chunk_length, device, own_sheet)

    def export(self, run: Run, state: dict[str, torch.Tensor], folder: Path) -> None:
        """A diffusers model folder, with the statistics of its latents."""
        # A frozen encoder keeps the statistics of its latents, which others rely on.
        batches = self.batches if self.config.train_only == "all" else None
        export(self.objective.model, state, batches, folder)
