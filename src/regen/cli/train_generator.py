"""`regen train-generator`: trains a text-to-video model."""

from dataclasses import dataclass

from regen.t2v.config import GeneratorConfig


@dataclass(frozen=True)
class TrainGenerator(GeneratorConfig):
    """Train a text-to-video model on cached latents; the same command again resumes.

    Example: regen cache clips latents; regen train-generator --data latents --output runs/t2v
    """

    def run(self) -> None:
        from regen.t2v.task import train_generator

        train_generator(self)
