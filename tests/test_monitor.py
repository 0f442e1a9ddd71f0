"""Properties of regen.training.monitor: means by task and timestep since the last report."""

import pytest
import torch
from accelerate import Accelerator

from regen.training.embedder import TASKS
from regen.training.monitor import CountedFlops, Monitor, matmul_peak


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


def test_flops_of_forward_and_backward() -> None:
    """By hand: 2 FLOPs a product; the backward pass is two products for each of the forward's."""
    linear = torch.nn.Linear(32, 48)
    conv = torch.nn.Conv2d(16, 8, 3, padding=1, groups=2)
    rows = torch.randn(10, 32, requires_grad=True)
    planes = torch.randn(3, 16, 7, 5, requires_grad=True)
    with CountedFlops() as forward:
        total = linear(rows).sum() + conv(planes).sum()
    of_linear, of_conv = 2 * 10 * 32 * 48, 2 * 3 * 7 * 5 * 8 * 8 * 9
    assert forward.flops == of_linear + of_conv
    with CountedFlops() as backward:
        total.backward()
    assert backward.flops == 2 * (of_linear + of_conv)


def test_utilization_counts_every_step() -> None:
    """Steps of shapes that were seen before count as much; those of a report are its own."""
    monitor = Monitor(Accelerator(cpu=True), TASKS)
    matrix = torch.randn(128, 128)
    for _ in range(3):
        with monitor.step("one product"):
            matrix @ matrix
    with monitor.step("two products"):
        matrix @ matrix @ matrix
    values = monitor.report()
    ratio = values["speed/tflops"] / values["speed/utilization"] * 1e12
    assert ratio == pytest.approx(monitor._peak)
    assert values["speed/utilization"] > 0
    assert monitor._flops_of == {"one product": 2 * 128**3, "two products": 4 * 128**3}
    assert "speed/tflops" not in monitor.report()


def test_the_peak_is_above_a_small_product() -> None:
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    assert 1e9 < peak < 1e15
