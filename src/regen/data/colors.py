"""Colour augmentation: hues rotated, saturation and gamma changed.

Choice: half of the training samples have other colours. Pure green, violet and magenta are rare in
the data, and colours must not decide whether a picture breaks.
"""

import math

import numpy as np
import torch

PROBABILITY = 0.5
SATURATION = (0.6, 1.4)
LOG_GAMMA = 0.25


def augment_colors(video: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """uint8 `[3, ...]` -> the same with other colours, or as it is; one draw for all frames."""
    if rng.random() >= PROBABILITY:
        return video
    matrix = hue_rotation(rng.uniform(-180, 180), rng.uniform(*SATURATION))
    gamma = math.exp(rng.uniform(-LOG_GAMMA, LOG_GAMMA))
    colors = (matrix @ video.flatten(1).float() / 255).clamp_(0, 1).pow_(gamma)
    return colors.mul_(255).round_().to(torch.uint8).view_as(video)


def hue_rotation(degrees: float, saturation: float = 1.0) -> torch.Tensor:
    """RGB `[3, 3]`: a rotation about the grey axis, distances from which are scaled."""
    angle = math.radians(degrees)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    grey = torch.full((3, 3), 1 / 3)
    turned = math.cos(angle) * (torch.eye(3) - grey) + math.sin(angle) * axis
    return grey + saturation * turned
