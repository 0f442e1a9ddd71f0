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
    """paper_4x, paper_8x, paper_16x, paper_32x: options of the paper, as defaults; those that you
    give stay as you give them."""

    def run(self) -> None:
        from regen.training.embedder import train

        self.check()
        train(self)


def with_recipe(recipe: str) -> Train:
    """`regen train` as `recipe` has it. ValueError: no such."""
    from regen.training.config import RECIPES

    if recipe not in RECIPES:
        raise ValueError(f"--recipe is one of {', '.join(RECIPES)}, got {recipe!r}")
    needed = {"data": tyro.MISSING, "output": tyro.MISSING}
    return Train(recipe=recipe, **needed, **RECIPES[recipe])
