"""`regen reproduce`: the tables and figures of the paper."""

from dataclasses import dataclass

import tyro

from regen.reproduction.config import Experiment, ReproduceConfig


@dataclass(frozen=True)
class Reproduce(ReproduceConfig):
    """Reproduce a table or figure of the paper: train what is missing, measure, compare.

    Example: regen reproduce table1 --data clips photos --eval-data held-out --minutes 60
    """

    experiment: tyro.conf.Positional[Experiment] = tyro.MISSING
    """Which one; docs/reproduce.md says what each asks."""

    def run(self) -> None:
        from regen.reproduction.experiments import reproduce

        print(reproduce(self.experiment, self).markdown(), end="")
