"""Runs of several stages: each below the output folder, from the weights of the one before."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from regen.training.config import TrainConfig, check_run_config
from regen.training.start import train


def chain(runs: Mapping[str, TrainConfig]) -> list[TrainConfig]:
    """A run for each stage, by its name: below `output`, from the weights of the one before.

    The last one's output folder is `output` itself. All share decoded clips and chunks.
    """
    chained: list[TrainConfig] = []
    for index, (name, run) in enumerate(runs.items()):
        is_last = index == len(runs) - 1
        chained.append(
            replace(
                run,
                output=run.output if is_last else run.output / name,
                init=str(chained[-1].output / "model") if chained else run.init,
                cache=run.cache or run.output / "cache",
                chunk_cache=run.chunk_cache or run.output / "chunks",
            )
        )
    return chained


def train_stages(runs: Iterable[TrainConfig]) -> None:
    """Train one after the other; what is done already stays. Raises ValueError as `train` does."""
    runs = list(runs)
    for run in runs:
        run.check()
    for run in runs:
        check_run_config(run.output / "config.json", run)
        if not (run.output / "model" / "config.json").exists():
            train(run)
