"""The options of `regen cache`: one frozen dataclass, which is also its `--help`."""

from dataclasses import dataclass
from typing import Literal

CacheStorage = Literal["bfloat16", "int8"]


@dataclass(frozen=True)
class CacheConfig:
    """How a data set is encoded."""

    model: str = "natural@8"
    """Embedder: an embedded model, a folder, or a hub id; NAME@RATIO as for regen reconstruct."""
    text_encoder: str | None = None
    """Folder or hub id of an encoder of transformers; by default all-MiniLM-L6-v2."""
    storage: CacheStorage = "bfloat16"
    """How latents are stored; int8 with a scale for each channel and latent frame."""
    num_frames: int | None = None
    """The first frames of each clip; shorter clips are left out. By default all, 600 at most."""
    height: int | None = None
    """Resize to cover this height and --width, crop about the middle. By default as they are."""
    width: int | None = None
    """See --height."""
    shard_clips: int = 1000
    """Clips of a shard."""
    max_bad_fraction: float = 0.05
    """Stop when more than this fraction of the files cannot be read."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to encode."""
    num_workers: int | None = None
    """Workers that encode; by default one for each GPU, else for each two cores. 0: without Ray, in
    this process."""
    address: str | None = None
    """Of a Ray cluster (auto on one of its machines, or HOST:PORT of its head); its machines read
    IN. By default Ray runs here alone."""

    @property
    def clips(self) -> dict[str, int | None]:
        """How frames are taken: a part of what decides on the latents of a clip."""
        return {"num_frames": self.num_frames, "height": self.height, "width": self.width}
