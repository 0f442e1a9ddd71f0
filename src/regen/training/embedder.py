"""What the loop asks of the embedder: its loss, its validation, its export."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch

from regen.baselines.objective import MAGVITObjective
from regen.data.batches import Batch, TrainingBatches, to_float
from regen.data.clips import Clip
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.moving_objective import MovingObjective
from regen.model.objective import Given, Objective, REGENObjective
from regen.training.chunk_store import RATIO_WEIGHTS, ChunkBatches
from regen.training.config import TrainConfig
from regen.training.export import export
from regen.training.run import Learner, Run, step_seed
from regen.training.validation import validate

TASKS = (
    *("image", "reconstruction", "interpolation", "extrapolation"),
    *(f"chunks_{ratio}" for ratio in RATIO_WEIGHTS),
)


SHORT_RATIO = 8  # at which a model of more is validated too


@dataclass
class EmbedderTask:
    """Train an `AutoencoderREGEN` on clips and photos (Sec. 3), or its baseline (B.2.1)."""

    config: TrainConfig
    objective: REGENObjective | MovingObjective | MAGVITObjective
    batches: TrainingBatches | ChunkBatches
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
        following, motion, to_first = (
            one if isinstance(one, torch.Tensor) else None
            for one in (batch.get(name) for name in ("following", "motion", "to_first"))
        )
        given = Given(
            to_float(chunk),
            to_float(target),
            frame_times,
            progress,
            None if following is None else to_float(following),
            motion,
            to_first,
        )
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
        """PSNR in dB, SSIM and LPIPS of one-step reconstructions of the held-out clips.

        Of one chunk; of a model with moving content at 8x (two chunks) and at its own ratio, or, of
        a run on images alone, of one frame.
        """
        if not self.validation_clips:
            return {}
        model = self.objective.model
        own_sheet = sheet if run.accelerator.is_main_process else None
        bad: list[str] = []
        measure = partial(
            validate,
            self.objective.reconstruct,
            self.validation_clips,
            device=run.accelerator.device,
            bad=bad,
        )
        if not isinstance(model, AutoencoderREGEN) or model.linear is None:
            values = measure(model.geometry.chunk_length, sheet=own_sheet)
        elif self.config.image_share == 1:
            values = measure(1, sheet=own_sheet)
        else:
            values = measure(model.geometry.chunk_length, sheet=own_sheet)
            if model.temporal_compression_ratio > SHORT_RATIO:
                try:
                    model.set_chunk_ratio(SHORT_RATIO)
                    short = measure(2 * model.geometry.chunk_length)
                finally:
                    model.set_chunk_ratio(None)
                values |= {f"{name}_{SHORT_RATIO}x": value for name, value in short.items()}
        if run.bad_clips is not None:
            run.bad_clips.add(bad)
        return values

    def export(self, run: Run, state: dict[str, torch.Tensor], folder: Path) -> None:
        """A diffusers model folder, with the statistics of its latents."""
        # A frozen encoder keeps the statistics of its latents, which others rely on.
        batches = self.batches if self.config.train_only == "all" else None
        export(self.objective.model, state, batches, folder)
