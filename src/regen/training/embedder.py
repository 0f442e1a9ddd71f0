"""What the loop asks of the embedder: its loss, its validation, its export."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from regen.data.batches import Batch, TrainingBatches, to_float
from regen.data.clips import Clip
from regen.training.adversarial import MAGVITObjective
from regen.training.config import TrainConfig
from regen.training.export import export
from regen.training.objective import Given, Objective, REGENObjective
from regen.training.run import Learner, Run, step_seed
from regen.training.validation import validate

TASKS = ("image", "reconstruction", "interpolation", "extrapolation")


@dataclass
class EmbedderTask:
    """Train an `AutoencoderREGEN` on clips and photos (Sec. 3), or its baseline (B.2.1)."""

    config: TrainConfig
    objective: REGENObjective | MAGVITObjective
    batches: TrainingBatches
    validation_clips: list[Clip]

    def batch_loss(
        self, run: Run, learner: Learner, batch: Batch, rank: int
    ) -> torch.Tensor | None:
        """Mean loss of a batch; its draws are those of `rank` and the run's step.

        None: this one does not learn at this step.
        """
        objective = cast(Objective, learner.objective)
        chunk, target, frame_times = batch["chunk"], batch["target"], batch["frame_times"]
        assert isinstance(chunk, torch.Tensor) and isinstance(target, torch.Tensor)
        assert isinstance(frame_times, torch.Tensor)
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, rank, run.step))
        progress = run.step / self.config.steps
        given = Given(to_float(chunk), to_float(target), frame_times, progress)
        arguments = objective.arguments(given, generator)
        if arguments is None:
            return None
        device = run.accelerator.device
        arguments = tuple(None if one is None else one.to(device) for one in arguments)
        with run.accelerator.autocast():
            losses: torch.Tensor = learner.wrapped(*arguments)
        if learner is run.learners[0]:
            run.monitor.add(str(batch["task"]), losses, *objective.timesteps(arguments))
        run.monitor.add_terms(objective.terms)
        return losses.mean()

    def validate(self, run: Run, sheet: Path | None) -> dict[str, float]:
        """PSNR in dB and SSIM of one-step reconstructions of the held-out clips."""
        if not self.validation_clips:
            return {}
        chunk_length, device = self.objective.model.geometry.chunk_length, run.accelerator.device
        reconstruct = self.objective.reconstruct
        own_sheet = sheet if run.accelerator.is_main_process else None
        bad: list[str] = []
        values = validate(reconstruct, self.validation_clips, chunk_length, device, bad, own_sheet)
        if run.bad_clips is not None:
            run.bad_clips.add(bad)
        return values

    def export(self, run: Run, state: dict[str, torch.Tensor], folder: Path) -> None:
        """A diffusers model folder, with the statistics of its latents."""
        # A frozen encoder keeps the statistics of its latents, which others rely on.
        batches = self.batches if self.config.train_only == "all" else None
        export(self.objective.model, state, batches, folder)
