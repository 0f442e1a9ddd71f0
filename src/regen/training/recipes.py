"""The paper's recipes (B.2, B.3) as options of `regen train`, a function for each ratio.

Batches are those of one of 32 GPUs. What takes the place of 32 processes on fewer:
`--gradient-accumulation-steps`.
"""

from collections.abc import Callable
from typing import Any

VIDEOS = {4: 6, 8: 4, 16: 3, 32: 1}  # of a batch, by temporal compression ratio


def _paper(ratio: int) -> dict[str, Any]:
    return {
        "preset": f"regen_{ratio}x",
        "steps": 100_000,
        "image_share": 0.2,
        "image_batch_size": 28,
        "video_batch_size": VIDEOS[ratio],
        "shapes": "aspect",
        "image_size": 256,
        "video_size": (192, 320),
        "num_targets": ratio + 1,
        "detail_weighting": False,
        # Choice: the recipes of the paper's size warm up for 1000 iterations to 1e-4, average with
        # 0.9999, and end with half of the tasks other than reconstruction. The paper says AdamW,
        # and that the others come more often later.
        "learning_rate": 1e-4,
        "warmup_steps": 1000,
        "ema_decay": 0.9999,
        "other_tasks": 0.5,
    }


def paper_4x() -> dict[str, Any]:
    return _paper(4)


def paper_8x() -> dict[str, Any]:
    return _paper(8)


def paper_16x() -> dict[str, Any]:
    return _paper(16)


def paper_32x() -> dict[str, Any]:
    return _paper(32)


RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    recipe.__name__: recipe for recipe in (paper_4x, paper_8x, paper_16x, paper_32x)
}
