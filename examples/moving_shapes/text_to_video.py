"""How the embedded text-to-video model was made, in one command that resumes.

    python examples/moving_shapes/text_to_video.py runs/t2v

Draws pictures and clips of the generated world, encodes both with `shapes_32x`, trains on pictures,
then on clips and pictures together. OUTPUT/videos/model is the pipeline, OUTPUT/shapes_t2v what of
it the package carries: the rest comes with the package, or with that of the text encoder.
"""

import csv
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from regen.moving_shapes import write_world
from regen.t2v.cache.building import CacheOptions, build_cache
from regen.t2v.config import GeneratorConfig
from regen.t2v.task import train_generator

SIDE, NUM_FRAMES = 64, 132  # four chunks


@dataclass(frozen=True)
class Options:
    output: Annotated[Path, tyro.conf.Positional]
    """Folder for everything: about 3 GB."""
    num_pictures: int = 24_000
    num_clips: int = 4_000
    picture_steps: int = 4_000
    steps: int = 6_000
    """Of clips and pictures together."""


def keep_transformer(pipeline: Path, latents: Path, manifest: Path, folder: Path) -> None:
    """The transformer of `pipeline`, what goes beside it, and the words of its captions."""
    for name in ("transformer", "scheduler"):
        shutil.copytree(pipeline / name, folder / name, dirs_exist_ok=True)
    info = json.loads((latents / "dataset.json").read_text())
    with manifest.open(newline="") as file:
        captions = " ".join(row["caption"].lower() for row in csv.DictReader(file))
    made_of = {
        "embedder": info["model"],
        "encoder_id": info["encoder_id"],
        "text_encoder_id": info["text_encoder_id"],
        "words": sorted(set(re.findall(r"[^\W\d_]+", captions))),
    }
    (folder / "made_of.json").write_text(json.dumps(made_of) + "\n")


def main(options: Options) -> None:
    output, latents = options.output, {}
    for name, count, num_frames, seed in (
        ("pictures", options.num_pictures, 1, 2),
        ("clips", options.num_clips, NUM_FRAMES, 3),
    ):
        write_world(output / name, count, num_frames, SIDE, SIDE, seed=seed)
        latents[name] = str(output / f"{name}_latents")
        cache = CacheOptions("shapes_32x", shard_clips=250, num_workers=0)
        build_cache([str(output / name)], latents[name], cache)
    common = {
        "preset": "t2v_nano",
        "warmup_steps": 100,
        "ema_decay": 0.998,
        "checkpoint_every": 250,
        "validate_every": 1000,
        "tracker": "none",
    }
    pictures = GeneratorConfig(
        data=(latents["pictures"],),
        output=output / "images",
        steps=options.picture_steps,
        learning_rate=2e-3,
        cooldown_fraction=0.1,
        **common,
    )
    train_generator(pictures)
    videos = GeneratorConfig(
        data=(latents["clips"], latents["pictures"]),
        output=output / "videos",
        init=str(pictures.output / "model"),
        steps=options.steps,
        learning_rate=1.5e-3,
        cooldown_fraction=0.4,
        video_batch_size=16,
        conditioning_fraction=0.1,
        **common,
    )
    train_generator(videos)
    keep_transformer(
        videos.output / "model",
        Path(latents["clips"]),
        output / "clips" / "manifest.csv",
        output / "shapes_t2v",
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
