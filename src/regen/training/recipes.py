"""Recipes as options of `regen train`: the paper's (B.2, B.3), and those of the embedded weights.

The paper's batches are those of one of 32 GPUs. What takes the place of 32 processes on fewer:
`--gradient-accumulation-steps`. A recipe of several stages is a run for each: it starts from the
weights of the one before.
"""

from typing import Any

Options = dict[str, Any]
VIDEOS = {4: 6, 8: 4, 16: 3, 32: 1}  # of a batch, by temporal compression ratio


def _paper(ratio: int) -> Options:
    return {
        "preset": f"regen_{ratio}x",
        "steps": 100_000,
        "image_fraction": 0.2,
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


def _natural(**options: Any) -> Options:
    return {
        "preset": "natural_32x",
        "optimizer": "muon",
        "weight_decay": 0.0,
        "warmup_steps": 50,
        "cooldown_fraction": 0.15,
        "ema_decay": 0.998,
        "crop": 128,
        "image_batch_size": 8,
        "num_targets": 2,
        "noise_only_fraction": 1.0,
        "latent_noise": 0.02,
        "validation_sources": 16,
        "validation_clips": 8,
        **options,
    }


RECIPES: dict[str, Options] = {f"paper_{ratio}x": _paper(ratio) for ratio in VIDEOS}

# Stages by name, in order, of the models that come with the package: a core and a half day each.
STAGES: dict[str, dict[str, Options]] = {
    "natural": {
        "pictures": _natural(learning_rate=1.5e-3, steps=6000, image_fraction=1.0),
        "video": _natural(
            learning_rate=1.2e-3, steps=7500, cooldown_fraction=0.0, image_fraction=0.25
        ),
        # For the eye: LPIPS beside the squared error, and the steps below t = 1.
        "steps": _natural(
            learning_rate=8e-4,
            steps=3000,
            cooldown_fraction=0.8,
            ema_decay=0.997,
            image_fraction=0.3,
            noise_only_fraction=0.4,
            perceptual_weight=2.0,
        ),
    },
    "shapes": {
        "world": {
            "preset": "shapes_32x",
            "optimizer": "muon",
            "learning_rate": 2e-3,
            "steps": 7500,
            "cooldown_fraction": 0.106,
            "crop": 64,
            "video_batch_size": 12,
            "image_batch_size": 48,
            "image_fraction": 0.1,
            "num_targets": 6,
        },
    },
}


def stages(recipe: str) -> dict[str, Options]:
    """The stages of `recipe`, in order. Raises ValueError: no such."""
    if recipe in RECIPES:
        return {recipe: RECIPES[recipe]}
    if recipe not in STAGES:
        raise ValueError(f"--recipe is one of {', '.join([*STAGES, *RECIPES])}, got {recipe!r}")
    return STAGES[recipe]
