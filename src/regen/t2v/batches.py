"""Batches of cached latents and their captions' embeddings, a function of (seed, rank, step).

An iteration is of images (content latents alone) or of videos, of one shape, the same kind on all
ranks, so that no process waits for another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from regen.chunking import ChunkGeometry
from regen.t2v.cache.latent_shards import LatentClip, LatentDataset, read_description
from regen.t2v.cache.statistics import Moments

KIND_STREAM = 2**31  # in place of a rank: images or videos is drawn for all ranks at once
TEXT_STEP = 8  # texts are filled up to a multiple: few lengths, few compilations


class LatentClips(ConcatDataset[LatentClip]):
    """All clips of some caches, by one index; of each `shapes` (n, h, w), `captions`, `sources`,
    and `num_chunks`: whole ones.

    Choice: a last chunk that was filled up trains the text-to-video model as an image, not as a
    video. Its end stands still.

    Raises ValueError where they are none, or were made by different models.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        caches = [LatentDataset(folder) for folder in folders]
        super().__init__(caches)
        self.info = caches[0].info
        self.shapes: list[tuple[int, int, int]] = []
        self.num_chunks: list[int] = []
        self.captions: list[str] = []
        self.sources: list[str] = []
        geometry = ChunkGeometry(self.info["temporal_compression_ratio"])
        space = self.info["spatial_compression_ratio"]
        for dataset in caches:
            for name in ("encoder_id", "temporal_compression_ratio", "text_encoder_id"):
                if dataset.info[name] != self.info[name]:
                    raise ValueError(
                        f"{dataset.folder} and {folders[0]} differ in their {name}: caches that "
                        "are trained on together are of the same models"
                    )
            for row in self._rows(dataset):
                size = (-(-row["height"] // space), -(-row["width"] // space))
                self.shapes.append((geometry.num_latent_frames(row["num_frames"]), *size))
                self.num_chunks.append(row["num_frames"] // geometry.chunk_length)
                self.captions.append(row["caption"])
                self.sources.append(row["source"])
        self._statistics = [dataset.info for dataset in caches]

    def moments(self) -> Moments:
        """Statistics of all latents, as the caches have them."""
        moments = Moments()
        for info in self._statistics:
            moments.merge(Moments.from_statistics(info))
        return moments

    @staticmethod
    def _rows(dataset: LatentDataset) -> Iterator[dict[str, Any]]:
        for shard in dataset.info["shards"]:
            description = read_description(dataset.folder / shard["file"])
            if description is None:
                path = dataset.folder / shard["file"]
                raise ValueError(f"{path} is missing or damaged: run regen cache again")
            yield from description["clips"]

    def hold_out(self, num_sources: int, seed: int) -> tuple[list[int], list[int]]:
        """(training, validation) indices: whole sources are held out, one clip of each measured.

        A tenth of the sources at most.
        """
        names = sorted(set(self.sources))
        order = np.random.default_rng([seed, len(names)]).permutation(len(names))
        held_out = {names[index] for index in order[: min(num_sources, len(names) // 10)]}
        first = {name: index for index, name in reversed(list(enumerate(self.sources)))}
        training = [index for index, name in enumerate(self.sources) if name not in held_out]
        return training, sorted(first[name] for name in held_out)


class LatentBatch(TypedDict):
    """`latents` `[B, 8, n, h, w]`, `prompt_embeds` `[B, L, E]`, `prompt_mask` bool `[B, L]`;
    `num_conditioning` `[B]`: latent frames that the model is given. `task`: image or video."""

    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    prompt_mask: torch.Tensor
    num_conditioning: torch.Tensor
    task: str


@dataclass(frozen=True)
class LatentBatchConfig:
    """`image_steps`: first iterations, of images alone; then `image_fraction` of them are.

    `num_chunks`: the most of a video in a sample. `caption_dropout`: fraction of captions that are
    replaced by the empty one. `conditioning_fraction`: of the videos whose first latent frames are
    given.
    """

    seed: int
    image_steps: int
    image_fraction: float
    image_batch_size: int
    video_batch_size: int
    num_chunks: int
    caption_dropout: float
    conditioning_fraction: float


class LatentBatches:
    """`batches[step]` of `rank`. `null_embeds` `[L, E]` are those of the empty caption.

    Raises ValueError where there is nothing to draw from.
    """

    def __init__(
        self,
        clips: LatentClips,
        indices: Sequence[int],
        null_embeds: torch.Tensor,
        config: LatentBatchConfig,
    ) -> None:
        self.clips, self.null_embeds, self.config, self.rank = clips, null_embeds, config, 0
        self.num_chunks = clips.num_chunks
        self.images: dict[tuple[int, ...], list[int]] = {}
        self.videos: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            _, height, width = clips.shapes[index]
            self.images.setdefault((1, height, width), []).append(index)
            if clips.num_chunks[index]:
                taken = 2 * min(clips.num_chunks[index], config.num_chunks)
                self.videos.setdefault((taken, height, width), []).append(index)
        if not self.images:
            raise ValueError("no latents to train on")

    def is_image(self, step: int) -> bool:
        if step < self.config.image_steps or not self.videos:
            return True
        rng = np.random.default_rng([self.config.seed, step, KIND_STREAM])
        return bool(rng.random() < self.config.image_fraction)

    def __getitem__(self, step: int) -> LatentBatch:
        config = self.config
        is_image = self.is_image(step)
        rng = np.random.default_rng([config.seed, step, self.rank])
        buckets = self.images if is_image else self.videos
        counts = np.array([len(bucket) for bucket in buckets.values()])
        shape = list(buckets)[int(rng.choice(len(counts), p=counts / counts.sum()))]
        batch_size = config.image_batch_size if is_image else config.video_batch_size
        drawn = rng.integers(len(buckets[shape]), size=batch_size)
        latents, texts = [], []
        for index in drawn:
            clip = self.clips[buckets[shape][index]]
            if shape[0] == 1:  # the content of any chunk, also of one that is not whole
                last = (clip["latents"].shape[1] - 1) // 2
            else:
                last = self.num_chunks[buckets[shape][index]] - shape[0] // 2
            start = 2 * int(rng.integers(last + 1))
            latents.append(clip["latents"][:, start : start + shape[0]])
            is_dropped = rng.random() < config.caption_dropout
            texts.append(self.null_embeds if is_dropped else clip["prompt_embeds"])
        embeds, mask = pad_texts(texts)
        return {
            "latents": torch.stack(latents),
            "prompt_embeds": embeds,
            "prompt_mask": mask,
            "num_conditioning": torch.from_numpy(
                self._draw_conditioning(rng, shape[0], batch_size)
            ),
            "task": "image" if is_image else "video",
        }

    def _draw_conditioning(
        self, rng: np.random.Generator, num_latent_frames: int, batch_size: int
    ) -> np.ndarray:
        # Choice: where latent frames are given, it is one (an image) or two (a chunk), as often.
        # So the same weights make text to video, image to video, and continue from a video.
        most = min(2, num_latent_frames - 1)
        if most < 1:
            return np.zeros(batch_size, dtype=np.int64)
        counts = rng.integers(1, most + 1, size=batch_size)
        return np.where(rng.random(batch_size) < self.config.conditioning_fraction, counts, 0)


def pad_texts(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings `[L, E]` of any lengths -> `[B, L', E]`, zero beyond, and their mask `[B, L']`."""
    length = max(len(text) for text in texts)
    length += -length % TEXT_STEP
    embeds = torch.zeros(len(texts), length, texts[0].shape[1])
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for row, text in enumerate(texts):
        embeds[row, : len(text)] = text
        mask[row, : len(text)] = True
    return embeds, mask
