"""Mean and standard deviation of latents, as buffers of a model: per channel, content and motion
apart."""

import torch

from regen.offloading import within_hooks


class LatentStatistics:
    """Mixin of a model with the buffers `latents_mean`, `latents_std` `[C, 2]` (content, motion).

    They act on latents `[B, C, n, h, w]`, even latent frames content and odd ones motion; results
    are float32.
    """

    _buffers: dict[str, torch.Tensor]

    def add_latent_statistics(self, num_channels: int) -> None:
        """Mean 0 and standard deviation 1 for now."""
        # Buffers by hand: diffusers takes an attribute from the configuration first, where
        # AutoencoderREGEN has entries of these names for code of other autoencoders.
        self._buffers["latents_mean"] = torch.zeros(num_channels, 2)
        self._buffers["latents_std"] = torch.ones(num_channels, 2)

    @property
    def latents_mean(self) -> torch.Tensor:
        return self._buffers["latents_mean"]

    @property
    def latents_std(self) -> torch.Tensor:
        return self._buffers["latents_std"]

    @within_hooks
    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as they come -> about zero mean and unit standard deviation."""
        mean, std = self._statistics(latents)
        return (latents.float() - mean) / std

    @within_hooks
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
