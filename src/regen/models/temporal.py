"""The temporal codec: what the warp of the first frame leaves of a chunk -> codes -> a correction.

Frames 1 to k are cosines in time of discrete cosines in 8 x 8 pixels of three colour axes. The
coefficients that vary most, always the same, are all that the codec knows of the chunk: so
that 33 frames are a few hundred numbers a place, not 6,336, and its networks are convolutions at an
eighth of the size. A linear codec with a network beside each half, as the picture codec is.

Choice: at k = 32 the codes of z_m beside the motion come from a network that sees the whole chunk.
Eight terms of motion for 33 frames are wrong nearly everywhere at once; what they leave is most of
it.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from regen.models.picture import (
    PATCH,
    PictureNetwork,
    convolve,
    in_float32,
    repeat_edges,
    to_patches,
)

VALUES = 3 * PATCH**2  # of a place in one frame
NETWORK_SCALE = 0.3  # of the networks' outputs, in deviations of what the warp leaves
TIME_BANDS = (1, 2, 4, 8, 16)  # from these orders in time on, a gate of its own
SPACE_BANDS = (1, 2, 4)  # and from these sums of orders along x and y
REFINEMENT_STEPS, REFINEMENT_RATE, REFINEMENT_BETAS = 8, 0.15, (0.8, 0.95)
NUM_GATES = 2 * (len(TIME_BANDS) + 1) * (len(SPACE_BANDS) + 1)


def cosines(size: int) -> torch.Tensor:
    """The orthonormal discrete cosine transform (DCT-II): `[size, size]`, an order a row."""
    order, place = torch.arange(size).float()[:, None], torch.arange(size).float() + 0.5
    matrix = torch.cos(math.pi * order * place / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def patch_cosines() -> torch.Tensor:
    """Orthonormal `[192, 192]`, from a patch (c, y, x) to coefficients (colour axis, y, x).

    The colour axes: grey, red against blue, green against both.
    """
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    axes = axes / axes.norm(dim=1, keepdim=True)
    along = cosines(PATCH)
    return torch.einsum("cd,py,qx->cpqdyx", axes, along, along).reshape(VALUES, VALUES)


class TemporalCodec(nn.Module):
    """Coefficients of a chunk, given those of its warp -> `num_codes` codes a place, and back.

    `num_coefficients` of the k * 192 are known; `index` says which. All planes are
    `[B, num_coefficients, h, w]`; `conditions` `[B, num_conditions, h, w]` are the codes of frame 0
    and the motion, `picture` `[B, 192, h, w]` the coefficients of frame 0 as it is decoded.
    """

    index: torch.Tensor
    base_gain: torch.Tensor
    base_scale: torch.Tensor
    left_scale: torch.Tensor
    picture_scale: torch.Tensor

    def __init__(
        self,
        ratio: int,
        num_codes: int,
        num_conditions: int,
        num_coefficients: int,
        width: int,
        num_blocks: tuple[int, int],
    ) -> None:
        super().__init__()
        self.ratio = ratio
        num_encoder_blocks, num_decoder_blocks = num_blocks
        count = num_coefficients
        self.register_buffer("index", torch.arange(count))
        self.register_buffer("base_gain", torch.zeros(count))  # best multiple of the warp, less 1
        self.register_buffer("base_scale", torch.ones(count))  # deviation of the chunk's
        self.register_buffer("left_scale", torch.ones(count))  # deviation of what the warp leaves
        self.register_buffer("picture_scale", torch.ones(VALUES))
        self.register_buffer("space", patch_cosines(), persistent=False)
        self.register_buffer("time", cosines(ratio), persistent=False)
        self.analysis = nn.Conv2d(count, num_codes, 1)
        self.synthesis = nn.Conv2d(num_codes + num_conditions, count, 3)
        self.encoder = PictureNetwork(2 * count + VALUES, num_codes, width, num_encoder_blocks, 1)
        self.decoder = PictureNetwork(
            num_codes + num_conditions + VALUES + count,
            count + NUM_GATES,
            width,
            num_decoder_blocks,
            1,
        )

    # -- pixels and coefficients -------------------------------------------------------------------

    def picture_coefficients(self, picture: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` -> `[B, 192, h, w]`."""
        return torch.einsum("ed,bdhw->behw", self.space.float(), to_patches(picture[:, :, None]))

    def all_coefficients(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames 1 to k `[B, 3, k, H, W]` -> all coefficients `[B, k * 192, h, w]`, by order."""
        patches = to_patches(frames).unflatten(1, (self.ratio, VALUES))
        ordered = torch.einsum("jt,btdhw->bjdhw", self.time.float(), patches)
        return torch.einsum("ed,bjdhw->bjehw", self.space.float(), ordered).flatten(1, 2)

    def coefficients(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames 1 to k `[B, 3, k, H, W]` -> those that are known."""
        return self.all_coefficients(frames)[:, self.index]

    def draw(self, known: torch.Tensor, frame_times: torch.Tensor) -> torch.Tensor:
        """Coefficients at `frame_times` `[B, F]`, any real ones: `[B, 3, F, H, W]`, 0 in frame 0.

        Before the chunk it stays 0, after it time runs back.
        """
        ordered = known.new_zeros(len(known), self.ratio * VALUES, *known.shape[2:])
        ordered[:, self.index] = known
        patches = torch.einsum(
            "ed,bjehw->bjdhw", self.space.float(), ordered.unflatten(1, (self.ratio, VALUES))
        )
        times = frame_times.float()
        order = torch.arange(self.ratio, device=times.device)
        basis = torch.cos(math.pi * order * (times[..., None] - 0.5) / self.ratio)
        basis = basis * math.sqrt(2 / self.ratio)
        basis[..., 0] /= math.sqrt(2)
        basis = basis * times.clamp(0, 1)[..., None]
        frames = torch.einsum("bfj,bjdhw->bfdhw", basis, patches)
        return rearrange(frames, "b f (c p q) h w -> b c f (h p) (w q)", p=PATCH, q=PATCH)

    # -- codes -------------------------------------------------------------------------------------

    def encode(
        self, chunk: torch.Tensor, base: torch.Tensor, picture: torch.Tensor
    ) -> torch.Tensor:
        """Codes `[B, num_codes, h, w]` of the coefficients `chunk`, beside those of its warp."""
        left = chunk - (1 + _planes(self.base_gain)) * base
        seen = torch.cat(
            [
                left / _planes(self.left_scale),
                base / _planes(self.base_scale),
                picture / _planes(self.picture_scale),
            ],
            dim=1,
        )
        with in_float32(left):
            codes = convolve(self.analysis, left)
        return codes + self.encoder(seen).float()

    def refine(
        self,
        codes: torch.Tensor,
        conditions: torch.Tensor,
        chunk: torch.Tensor,
        base: torch.Tensor,
        picture: torch.Tensor,
    ) -> torch.Tensor:
        """`codes` of `encode`, brought nearer to those that decode best: steps of Adam.

        Choice: the temporal codec's encoder ends with eight steps of descent through its decoder. A
        network gives the same codes at once only after far longer training; it is worth 0.1 dB.
        """
        with torch.inference_mode(False), torch.enable_grad():
            given = [one.detach().clone() for one in (conditions, base, picture)]
            left = chunk.detach().clone() - given[1]
            codes = codes.detach().clone().requires_grad_(True)
            optimizer = torch.optim.Adam([codes], REFINEMENT_RATE, REFINEMENT_BETAS)
            for _ in range(REFINEMENT_STEPS):
                errors = (self.decode(codes, *given) - left).square().sum(dim=(1, 2, 3))
                # Each sample over its own error: so that no other in the batch matters to it.
                (codes.grad,) = torch.autograd.grad((errors / errors.detach()).sum(), codes)
                optimizer.step()
        return codes.detach()

    def decode(
        self,
        codes: torch.Tensor,
        conditions: torch.Tensor,
        base: torch.Tensor,
        picture: torch.Tensor,
    ) -> torch.Tensor:
        """What is to be added to the coefficients `base` of the warp."""
        codes = torch.cat([codes, conditions], dim=1)
        with in_float32(codes):
            linear = convolve(self.synthesis, repeat_edges(codes))
        seen = torch.cat(
            [codes, picture / _planes(self.picture_scale), base / _planes(self.base_scale)], dim=1
        )
        output = NETWORK_SCALE * self.decoder(seen).float()
        added, gates = output.split([len(self.index), NUM_GATES], dim=1)
        gates = F.pad(gates, (0, 0, 0, 0, 0, 1))  # the last one, of mean colours, stays 0
        gain = _planes(self.base_gain) + gates[:, self.gates()]
        return linear + gain * base + _planes(self.left_scale) * added

    def gates(self) -> torch.Tensor:
        """The gate of each known coefficient, by its orders in time and space and its colour."""
        order, place = self.index // VALUES, self.index % VALUES
        colour, frequency = place // PATCH**2, place % PATCH**2
        frequency = frequency // PATCH + frequency % PATCH
        space = torch.tensor(SPACE_BANDS, device=order.device)
        time = torch.tensor(TIME_BANDS, device=order.device)
        band = torch.bucketize(order, time, right=True) * (len(SPACE_BANDS) + 1)
        band = band + torch.bucketize(frequency, space, right=True)
        gate = 2 * band + (colour > 0)
        return torch.where((order == 0) & (frequency == 0), NUM_GATES, gate)


def _planes(values: torch.Tensor) -> torch.Tensor:
    return values.float().view(1, -1, 1, 1)
