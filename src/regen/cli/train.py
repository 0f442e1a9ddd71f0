"""`regen train`: trains an embedder."""

from dataclasses import dataclass

import tyro

from regen.training.config import TrainConfig


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train an embedder on clips and photos; the same command again resumes.

    Example: regen train --data clips photos --output runs/mine
    """

    recipe: str | None = None
    """natural, shapes: how the embedded models were made, stage by stage. paper_4x, paper_8x,
    paper_16x, paper_32x: options of the paper. Options that you give prevail, in every stage."""

    def run(self) -> None:
        from regen.training.embedder import train

        self.check()
        train(self)


def defaults_of(recipe: str) -> dict[str, Train]:
    """The options of each stage of `recipe`, by its name. ValueError: no such."""
    from regen.training.recipes import stages

    needed = {"data": tyro.MISSING, "output": tyro.MISSING, "recipe": recipe}
    return {name: Train(**needed, **options) for name, options in stages(recipe).items()}


def run_stages(stages: dict[str, Train]) -> None:
    from regen.training.embedder import chain, train_stages

    train_stages(chain(stages))
