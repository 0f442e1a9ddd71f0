"""Mean and standard deviation of latents, channel by channel, content and motion apart, in one
pass."""

from typing import Any

import torch

LATENT_CHANNELS = 8


class Moments:
    """Running moments, merged as Chan, Golub & LeVeque (1979) do: nothing large is subtracted.

    `count` `[2]` (content, motion), `mean` and `sum_of_squares` (about the mean) float64 `[8, 2]`.
    """

    def __init__(self) -> None:
        self.count = torch.zeros(2, dtype=torch.float64)
        self.mean = torch.zeros(LATENT_CHANNELS, 2, dtype=torch.float64)
        self.sum_of_squares = torch.zeros(LATENT_CHANNELS, 2, dtype=torch.float64)

    def add(self, latents: torch.Tensor) -> None:
        """The values of `[8, n, h, w]`; latent frames of even index are content."""
        other = Moments()
        for kind in (0, 1):
            values = latents[:, kind::2].double().flatten(1)
            if values.shape[1]:
                other.count[kind] = values.shape[1]
                other.mean[:, kind] = values.mean(1)
                other.sum_of_squares[:, kind] = (
                    (values - values.mean(1, keepdim=True)).square().sum(1)
                )
        self.merge(other)

    def merge(self, other: "Moments") -> None:
        total = (self.count + other.count).clamp_min(1)
        difference = other.mean - self.mean
        self.sum_of_squares += (
            other.sum_of_squares + difference**2 * self.count * other.count / total
        )
        self.mean += difference * other.count / total
        self.count += other.count

    @property
    def std(self) -> torch.Tensor:
        """float64 `[8, 2]`; 1 where there was nothing (a cache of images has no motion)."""
        std = (self.sum_of_squares / self.count.clamp_min(1)).sqrt()
        return torch.where(self.count > 0, std, 1.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.count.tolist(),
            "mean": self.mean.tolist(),
            "sum_of_squares": self.sum_of_squares.tolist(),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Moments":
        moments = cls()
        for name in ("count", "mean", "sum_of_squares"):
            setattr(moments, name, torch.tensor(fields[name], dtype=torch.float64))
        return moments

    def statistics(self) -> dict[str, Any]:
        """What `dataset.json` says of a cache."""
        return {
            "latents_mean": self.mean.tolist(),
            "latents_std": self.std.tolist(),
            "latents_count": self.count.tolist(),
        }

    @classmethod
    def from_statistics(cls, fields: dict[str, Any]) -> "Moments":
        """Back from `statistics`."""
        moments = cls()
        moments.count, moments.mean, std = (
            torch.tensor(fields[f"latents_{name}"], dtype=torch.float64)
            for name in ("count", "mean", "std")
        )
        moments.sum_of_squares = std**2 * moments.count
        return moments
