"""Mean and standard deviation of latents, as buffers of a model: per channel, content and motion
apart."""

import torch


class LatentStatistics:
    """Mixin of a model with the buffers `latents_mean`, `latents_std` `[C, 2]` (content, motion).

    They act on latents `[B, C, n, h, w]`, even latent frames content and odd ones motion; results
    are float32.
    """

    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as they come -> about zero mean and unit standard deviation."""
        mean, std = self._statistics(latents)
        return (latents.float() - mean) / std

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Back from `normalize_latents`."""
        mean, std = self._statistics(latents)
        return latents.float() * std + mean

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where `latents` are: under offloading the model may not be there yet."""
        kind = torch.arange(latents.shape[2], device=self.latents_mean.device) % 2
        mean, std = (
            one[:, kind].to(latents.device).float()[None, :, :, None, None]
            for one in (self.latents_mean, self.latents_std)
        )
        return mean, std
