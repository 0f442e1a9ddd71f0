"""`regen plan`: what a training run needs."""

from dataclasses import dataclass

from regen.cli.output import print_table
from regen.training.plan import PlanConfig


@dataclass(frozen=True)
class Plan(PlanConfig):
    """Say what a training run needs, before paying: memory, FLOPs, time, cost. Runs nothing.

    Example: regen plan --preset regen_8x --gpus 32 --gpu h100 --gradient-checkpointing
    """

    def run(self) -> None:
        from regen.training.plan import plan

        print_table(plan(self))
