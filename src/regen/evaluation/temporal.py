"""What a mean over frames hides: seams between chunks, flicker, drift of colour.

In: videos `[B, 3, T, H, W]` in [-1, 1]. Differences are in levels of 255, as pictures are stored.
"""

import torch

LEVELS = 127.5  # of [-1, 1], in levels of 255


def frame_steps(video: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring frames, in levels, `[B, T - 1]`."""
    return LEVELS * video.float().diff(dim=2).abs().mean(dim=(1, 3, 4))


def seam_ratio(video: torch.Tensor, chunk_length: int) -> torch.Tensor:
    """Step across seams over step within chunks of `chunk_length` frames, `[B]` (App. B.4).

    1 is no seam. A source has a ratio of its own, which is the one to compare with. NaN where there
    is no seam, nothing within a chunk, or nothing moves.
    """
    steps = frame_steps(video)
    is_seam = torch.arange(1, video.shape[2]) % chunk_length == 0
    within = steps[:, ~is_seam].mean(dim=1)
    return torch.where(within > 0, steps[:, is_seam].mean(dim=1) / within, torch.nan)


def flicker(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How much the error changes from frame to frame, in levels, `[B, T - 1]`.

    The mean absolute difference between the temporal differences (axis 2) of the two; an error that
    stands still costs nothing.
    """
    return frame_steps(video.float() - reference.float())


def colour_shift(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean colour less the reference's, in levels, with sign, `[B, T, 3]` for R, G, B."""
    difference = LEVELS * (video.float() - reference.float()).mean(dim=(3, 4))
    return difference.transpose(1, 2)


def colour_error(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Absolute error of a frame's mean colour, mean over R, G, B, in levels, `[B, T]`."""
    return colour_shift(video, reference).abs().mean(dim=-1)
