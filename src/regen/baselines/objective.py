"""The baseline's losses (B.2.1): MAGVIT-v2 and its discriminator, two that learn in turn.

The model: pixels, a perceptual distance, KL, and what the discriminator says. The discriminator:
the non-saturating logistic loss and LeCAM's regularisation.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from regen.baselines.discriminator import VideoDiscriminator
from regen.baselines.magvit import AutoencoderMAGVITv2
from regen.baselines.pyramid import Distance
from regen.model.objective import Given, detail_weights

# MAGVIT's and MAGVIT-v2's weights; KL as latent diffusion's.
PERCEPTUAL_WEIGHT = 0.1
ADVERSARIAL_WEIGHT = 0.1
LECAM_WEIGHT = 0.001
LECAM_DECAY = 0.999
KL_WEIGHT = 1e-6
# Choice: the discriminator and what it says begin after a third of the run. Until then pictures are
# so blurred that the time is better spent on the other losses; it is common in such training.
ADVERSARIAL_START = 1 / 3
MAX_ADAPTIVE_WEIGHT = 1e4
Pair = tuple[torch.Tensor, torch.Tensor]  # a chunk, and what became of it


class MAGVITObjective(nn.Module):
    """Losses of the model. `discriminator` judges, and learns elsewhere: no part of this module."""

    term_names: tuple[str, ...] = ("pixels", "perceptual", "kl", "adversarial")

    def __init__(
        self,
        model: AutoencoderMAGVITv2,
        discriminator: VideoDiscriminator,
        distance: Distance,
        detail_weighting: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.distance = distance
        self.detail_weighting = detail_weighting
        self.terms: dict[str, torch.Tensor] = {}
        self.pairs: list[Pair] = []  # for the discriminator, which takes them away
        self._judges = (discriminator,)  # in a tuple: not a module of this one

    def arguments(self, given: Given, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Chunk, noise for its latents, and whether the discriminator has a say."""
        batch, _, num_frames, height, width = given.chunk.shape
        geometry = self.model.geometry
        shape = (batch, self.model.config["latent_channels"], geometry.latent_frames_of(num_frames))
        noise = torch.randn(*shape, height // 8, width // 8, generator=generator)
        return given.chunk, noise, torch.tensor(given.progress >= ADVERSARIAL_START)

    def timesteps(
        self, arguments: tuple[torch.Tensor | None, ...]
    ) -> tuple[torch.Tensor | None, float]:
        return None, 1.0

    def forward(
        self, chunk: torch.Tensor, noise: torch.Tensor, is_adversarial: torch.Tensor
    ) -> torch.Tensor:
        """Losses `[B]` of chunks `[B, 3, T, H, W]`; their pairs are left in `self.pairs`."""
        mean, log_variance = self.model.encode_chunk(chunk)
        latents = mean + (0.5 * log_variance).exp() * noise.to(mean.dtype)
        reconstruction = self.model.decode_chunk(latents).float()
        pixels = (reconstruction - chunk).square().mean(dim=(1, 2, 3, 4))
        if self.detail_weighting:
            pixels = pixels * detail_weights(chunk)
        frames = [rearrange(one, "b c t h w -> (b t) c h w") for one in (reconstruction, chunk)]
        perceptual = self.distance(*frames).view(len(chunk), -1).mean(dim=1)
        # Summed over the latents, for each pixel value, as in latent diffusion.
        mean, log_variance = mean.float(), log_variance.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        kl = divergence.flatten(1).sum(dim=1) / chunk[0].numel()
        losses = pixels + PERCEPTUAL_WEIGHT * perceptual + KL_WEIGHT * kl
        terms = {"pixels": pixels, "perceptual": perceptual, "kl": kl}
        if is_adversarial:
            (discriminator,) = self._judges
            discriminator.requires_grad_(False)
            adversarial = F.softplus(-discriminator(reconstruction).float()).mean(dim=1)
            discriminator.requires_grad_(True)
            weight = self._adaptive_weight(losses, adversarial)
            losses = losses + ADVERSARIAL_WEIGHT * weight * adversarial
            terms["adversarial"] = adversarial
            self.pairs.append((chunk, reconstruction.detach()))
        self.terms = {name: value.detach().mean() for name, value in terms.items()}
        return losses

    def _adaptive_weight(self, losses: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        """The ratio of their gradients' norms at the last layer (VQGAN's).

        Choice: the adversarial term is scaled to the others' gradient at the last layer. The paper
        gives no weight, and MAGVIT's 0.1 is of losses of another scale.
        """
        last = self.model.decoder.conv_out.weight
        of_others, of_judge = (
            torch.autograd.grad(one.mean(), last, retain_graph=True)[0].norm()
            for one in (losses, adversarial)
        )
        return (of_others / (of_judge + 1e-4)).clamp(max=MAX_ADAPTIVE_WEIGHT).detach()

    def reconstruct(self, video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Encode and decode `[B, 3, T, H, W]`."""
        return self.model(video).sample


class DiscriminatorObjective(nn.Module):
    """Losses of the discriminator, on the pairs that `model_objective` left.

    LeCAM (Tseng et al., 2021) pulls logits of one kind to the running mean of the other's.
    """

    term_names: tuple[str, ...] = ("discriminator", "lecam")
    real_logit: torch.Tensor
    fake_logit: torch.Tensor

    def __init__(self, discriminator: VideoDiscriminator, model_objective: MAGVITObjective) -> None:
        super().__init__()
        self.discriminator = discriminator
        self._pairs = model_objective.pairs
        self.terms: dict[str, torch.Tensor] = {}
        self.register_buffer("real_logit", torch.zeros(()))
        self.register_buffer("fake_logit", torch.zeros(()))

    def arguments(self, given: Given, generator: torch.Generator) -> Pair | None:
        """The pair of this batch; None while the discriminator waits."""
        return self._pairs.pop(0) if self._pairs else None

    def timesteps(
        self, arguments: tuple[torch.Tensor | None, ...]
    ) -> tuple[torch.Tensor | None, float]:
        return None, 1.0

    def forward(self, chunk: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Losses `[B]` of chunks and their reconstructions, `[B, 3, T, H, W]` each."""
        real, fake = self.discriminator(torch.cat([chunk, reconstruction])).float().chunk(2)
        losses = (F.softplus(-real) + F.softplus(fake)).mean(dim=1)
        with torch.no_grad():
            for running, logits in ((self.real_logit, real), (self.fake_logit, fake)):
                running.lerp_(logits.mean(), 1 - LECAM_DECAY)
        lecam = (real - self.fake_logit).relu().square() + (self.real_logit - fake).relu().square()
        lecam = lecam.mean(dim=1)
        terms = {"discriminator": losses, "lecam": lecam}
        self.terms = {name: value.detach().mean() for name, value in terms.items()}
        return losses + LECAM_WEIGHT * lecam
