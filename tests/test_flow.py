"""The straight path and its sampler against closed forms."""

import itertools

import pytest
import torch

from regen.flow import (
    PREDICTION_TYPES,
    add_noise,
    euler_sample,
    posterior_gain,
    predicted_sample,
    training_target,
)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_gives_the_sample_back(prediction_type: str) -> None:
    sample, noise = torch.randn(4, 3, 2, 8, 8), torch.randn(4, 3, 2, 8, 8)
    timestep = torch.tensor([0.1, 0.4, 0.7, 0.95])
    noisy = add_noise(sample, noise, timestep)
    output = training_target(sample, noise, prediction_type)
    # float32 error grows as 1 / (1 - t) for noise prediction: 1e-6 / 0.05
    assert torch.allclose(
        predicted_sample(output, noisy, timestep, prediction_type), sample, atol=1e-4
    )


def test_the_path_ends_in_data_and_noise() -> None:
    sample, noise = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(add_noise(sample, noise, torch.zeros(2)), sample)
    assert torch.equal(add_noise(sample, noise, torch.ones(2)), noise)


def test_one_step_is_the_networks_answer() -> None:
    answer = torch.randn(2, 3, 4)
    assert torch.equal(
        euler_sample(lambda noisy, timestep: answer, torch.randn(2, 3, 4), 1), answer
    )


def test_gaussian_data_are_sampled_with_the_closed_form_error() -> None:
    """For data N(m, s^2) x_hat is linear in x_t: each Euler step scales x_t - (1 - t) m."""
    mean, deviation, num_steps = 0.7, 0.5, 8

    def ideal(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        t = float(timestep[0])
        variance = (1 - t) ** 2 * deviation**2 + t**2
        return mean + (1 - t) * deviation**2 / variance * (noisy - (1 - t) * mean)

    expected_scale, grid = 1.0, torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    for now, later in itertools.pairwise(grid):
        gain = (1 - now) * deviation**2 / ((1 - now) ** 2 * deviation**2 + now**2)
        # deviation of x_t about its mean: x_hat part gain, carried part (later / now) (1 - gain
        # (1 - now)) ...
        expected_scale *= gain * (1 - later / now) + later / now
    noise = torch.randn(20000, 1, dtype=torch.float32)
    sample = euler_sample(ideal, noise, num_steps)
    assert torch.allclose(sample, mean + expected_scale * noise, atol=1e-4)
    # and the error against the true deviation shrinks with the number of steps
    many = euler_sample(ideal, noise, 200)
    assert abs(many.std() - deviation) < abs(sample.std() - deviation)
    assert abs(many.std() - deviation) < 0.02


def test_posterior_gain() -> None:
    """Nothing is believed at t = 1, all at 0; between as the regression of x on x_t says."""
    assert posterior_gain(torch.tensor([0.0, 1.0]), 0.3).tolist() == pytest.approx([1, 0])
    generator = torch.Generator().manual_seed(0)
    sample = 0.3 * torch.randn(1, 100_000, generator=generator)
    noise = torch.randn(1, 100_000, generator=generator)
    noisy = add_noise(sample, noise, torch.tensor([0.4]))
    regression = (sample * noisy).mean() / noisy.square().mean()
    # Correlation 0.4 of 100,000 pairs: good to 0.002.
    assert posterior_gain(torch.tensor([0.4]), 0.3).item() == pytest.approx(
        regression.item(), abs=0.008
    )
