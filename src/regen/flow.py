"""The straight path (Sec. 3.2, Eq. 2-4) and its Euler sampler, which takes any callable.

`timestep` t runs from 0 (data) to 1 (noise): x_t = (1 - t) x + t eps. Everything here is float32.
"""

import itertools
from collections.abc import Callable
from typing import Literal, get_args

import torch

PredictionType = Literal["sample", "v_prediction", "epsilon"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)

# Choice: noise prediction is sampled from t = 0.98, the other two from 1. It divides by 1 - t.
EPSILON_MAX_TIMESTEP = 0.98


def start_timestep(prediction_type: str) -> float:
    """Where sampling starts, and one-step decoding is."""
    return EPSILON_MAX_TIMESTEP if prediction_type == "epsilon" else 1.0


def _broadcast(timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return timestep.float().view(-1, *[1] * (like.ndim - 1))


def add_noise(sample: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) x + t eps (Eq. 2-3); `timestep` `[B]`."""
    t = _broadcast(timestep, sample)
    return (1 - t) * sample + t * noise


def training_target(
    sample: torch.Tensor, noise: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """What the network is asked for: x, eps - x, or eps (Eq. 4)."""
    if prediction_type == "sample":
        return sample
    return noise - sample if prediction_type == "v_prediction" else noise


def posterior_gain(timestep: torch.Tensor, standard_deviation: float) -> torch.Tensor:
    """Weight of x_t in the posterior mean; `[B]` -> `[B]`.

    For x ~ N(m, s^2), E[x | x_t] = m + gain * (x_t - (1 - t) m). The gain is 0 at t = 1 (noise says
    nothing), 1 at t = 0.
    """
    t, variance = timestep.float(), standard_deviation**2
    return (1 - t) * variance / ((1 - t) ** 2 * variance + t**2).clamp_min(1e-12)


def precondition(
    timestep: torch.Tensor, standard_deviation: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior gain and the standard deviation that it leaves, `[B]` -> `[B, 1, 1, 1, 1]` each."""
    t = timestep.float().view(-1, 1, 1, 1, 1)
    gain = posterior_gain(timestep, standard_deviation).view(-1, 1, 1, 1, 1)
    return gain, standard_deviation * (1 - gain * (1 - t)).clamp_min(0).sqrt()


def predicted_sample(
    output: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The clean sample that the network's `output` at (x_t, t) implies."""
    output, noisy = output.float(), noisy.float()
    t = _broadcast(timestep, noisy)
    if prediction_type == "sample":
        return output
    return (
        noisy - t * output if prediction_type == "v_prediction" else (noisy - t * output) / (1 - t)
    )


def euler_sample(
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    num_inference_steps: int,
    start_timestep: float = 1.0,
) -> torch.Tensor:
    """Integrate dx/dt = (x_t - x_hat) / t from `start_timestep` to 0.

    `denoise(x_t, timestep[B])` returns x_hat. One step is one call: its answer is the sample.
    """
    grid = torch.linspace(start_timestep, 0, num_inference_steps + 1).tolist()
    noisy = noise.float()
    for now, later in itertools.pairwise(grid):
        timestep = torch.full((noise.shape[0],), now, device=noise.device)
        clean = denoise(noisy, timestep).float()
        noisy = clean + (later / now) * (noisy - clean)
    return noisy
