"""Properties of regen.training.monitor: means by task and timestep since the last report."""

import pytest
import torch
from accelerate import Accelerator

from regen.training.embedder import TASKS
from regen.training.monitor import Monitor


def test_means_by_task_and_timestep() -> None:
    monitor = Monitor(Accelerator(cpu=True), TASKS)
    monitor.add("image", torch.tensor([1.0, 3.0]), torch.tensor([0.1, 1.0]), 1.0)
    monitor.add("interpolation", torch.tensor([5.0, 8.0]), torch.tensor([0.99, 0.24]), 1.0)
    values = monitor.report()
    assert values.pop("speed/clips_per_s") > 0
    expected = {"image": 2.0, "interpolation": 6.5, "t0-0.25": 4.5, "t0.75-1": 5.0, "t1": 3.0}
    assert values == {f"loss/{name}": pytest.approx(mean) for name, mean in expected.items()}
    assert set(monitor.report()) == {"speed/clips_per_s"}


def test_the_latest_timestep_of_noise_prediction() -> None:
    monitor = Monitor(Accelerator(cpu=True), TASKS)
    monitor.add("reconstruction", torch.tensor([2.0, 4.0]), torch.tensor([0.98, 0.9799]), 0.98)
    values = monitor.report()
    assert (values["loss/t1"], values["loss/t0.75-1"]) == (2.0, 4.0)
