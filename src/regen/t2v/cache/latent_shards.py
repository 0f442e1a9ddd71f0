"""The latent shard: one safetensors file with the latents and texts of many clips; its reader.

Tensors of clip i: `i.latents` `[8, n, h, w]`, normalised, bfloat16 or int8 with `i.scale` `[8, n]`;
`i.prompt_embeds` bfloat16 `[L, D]`, the tokens of its caption alone, so that the mask is L. Text in
the metadata: a row for each clip, statistics, what was left out, a hash of the inputs. Beside the
shards lies `dataset.json`: what made them, how many clips each holds, statistics of all.

safetensors and not tar files: the header is the index, a clip is read alone from a memory map, and
a shard is one file that appears whole or not at all. Only this module knows the layout.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset

from regen.files import write_json
from regen.latent_file import dequantize, quantize, write_tensors
from regen.t2v.cache.config import CacheStorage
from regen.t2v.cache.statistics import Moments

SHARD_FORMAT = "regen-latent-shard-1"
DATASET_FORMAT = "regen-latent-dataset-1"
DATASET_FILE = "dataset.json"
MAX_OPEN = 16  # shards that a reader keeps open


class LatentClip(TypedDict):
    """A clip of `LatentDataset`. `latents` float32 `[8, n, h, w]`; `prompt_embeds` float32 `[L, D]`
    of the caption's tokens; the rest is of the video that was encoded."""

    key: str
    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    caption: str
    source: str
    num_frames: int
    height: int
    width: int
    frame_rate: float


class LatentBatch(TypedDict):
    """`latents` `[B, 8, n, h, w]`, `prompt_embeds` `[B, L, D]`, zero after the last token,
    `prompt_embeds_mask` bool `[B, L]`, True at tokens."""

    key: list[str]
    caption: list[str]
    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    prompt_embeds_mask: torch.Tensor


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.safetensors"


def clip_tensors(
    latents: torch.Tensor, prompt_embeds: torch.Tensor, storage: CacheStorage
) -> dict[str, torch.Tensor]:
    """What is stored of a clip: float `[8, n, h, w]` and `[L, D]` -> named tensors."""
    tensors = {"prompt_embeds": prompt_embeds.bfloat16().contiguous()}
    if storage == "int8":
        tensors["latents"], tensors["scale"] = quantize(latents)
    else:
        tensors["latents"] = latents.bfloat16().contiguous()
    return tensors


def stored_latents(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """`clip_tensors`' latents, as a reader gets them: float32 `[8, n, h, w]`."""
    if "scale" in tensors:
        return dequantize(tensors["latents"], tensors["scale"])
    return tensors["latents"].float()


def write_shard(
    path: Path,
    clips: Sequence[tuple[dict[str, Any], dict[str, torch.Tensor]]],
    bad: Sequence[str],
    space: dict[str, Any],
    inputs: str,
) -> dict[str, Any]:
    """Write (row, tensors) of each clip; its description. The file appears whole or not at all.

    `bad`: a line for each clip left out; `space`: ids of the encoders, and the type of storage;
    `inputs`: a hash of all that the shard follows from.
    """
    moments = Moments()
    tensors: dict[str, torch.Tensor] = {}
    for number, (_, stored) in enumerate(clips):
        moments.add(stored_latents(stored))
        tensors |= {f"{number}.{name}": value for name, value in stored.items()}
    description = {
        "format": SHARD_FORMAT,
        "space": space,
        "inputs": inputs,
        "bad": list(bad),
        "clips": [row for row, _ in clips],
        "moments": moments.to_dict(),
    }
    # An entry alone: more would be written in an order that changes from process to process.
    metadata = {"shard": json.dumps(description, ensure_ascii=False, sort_keys=True)}
    write_tensors(path, tensors, metadata)
    return description


def read_description(path: Path) -> dict[str, Any] | None:
    """What `write_shard` returned; None where there is no whole shard."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("shard", "{}"))
    except (OSError, SafetensorError, ValueError):
        return None
    return description if description.get("format") == SHARD_FORMAT else None


def read_dataset_file(folder: str | Path) -> dict[str, Any]:
    """`dataset.json` of a cache. Raises ValueError where there is none, or of another kind."""
    path = Path(folder) / DATASET_FILE
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no {DATASET_FILE}: give a folder that regen cache has finished"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(fields, dict) or fields.get("format") != DATASET_FORMAT:
        raise ValueError(f"{path} is not of a latent cache ({DATASET_FORMAT})")
    return fields


def write_dataset_file(folder: Path, fields: dict[str, Any]) -> None:
    write_json(folder / DATASET_FILE, {"format": DATASET_FORMAT, **fields})


class LatentDataset(Dataset[LatentClip]):
    """The clips of a cache, at random: `dataset[i]` is a `LatentClip`.

    `info` is `dataset.json`; `latents_mean`, `latents_std` float32 `[8, 2]` (content, motion) of
    the latents as they are here. Shards are opened when they are read, in each worker again. Raises
    ValueError for a folder that is no finished cache, and for shards that are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_dataset_file(folder)
        self.latents_mean = torch.tensor(self.info["latents_mean"])
        self.latents_std = torch.tensor(self.info["latents_std"])
        self._ends = list(accumulate(shard["num_clips"] for shard in self.info["shards"]))
        self._open: dict[int, tuple[Any, list[dict[str, Any]]]] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> LatentClip:
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        file, rows = self._shard(number)
        row_index = index - (self._ends[number - 1] if number else 0)
        names = ["latents", "prompt_embeds"]
        names += ["scale"] if self.info["storage"] == "int8" else []
        try:
            tensors = {name: file.get_tensor(f"{row_index}.{name}") for name in names}
        except SafetensorError as error:
            raise ValueError(f"{self.folder}, shard {number}: damaged ({error})") from None
        latents, embeds = stored_latents(tensors), tensors["prompt_embeds"].float()
        return cast(LatentClip, rows[row_index] | {"latents": latents, "prompt_embeds": embeds})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay in their process

    def _shard(self, number: int) -> tuple[Any, list[dict[str, Any]]]:
        if number not in self._open:
            path = self.folder / self.info["shards"][number]["file"]
            description = read_description(path)
            expected = self.info["shards"][number]["num_clips"]
            if description is None or len(description["clips"]) != expected:
                raise ValueError(f"{path} is missing, damaged or changed: run regen cache again")
            if len(self._open) >= MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[number] = (safe_open(path, framework="pt"), description["clips"])
        return self._open[number]


def collate(clips: Sequence[LatentClip]) -> LatentBatch:
    """Clips of one shape -> a batch; `collate_fn` of a DataLoader."""
    shapes = {tuple(clip["latents"].shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(
            f"a batch is of one shape, got {sorted(shapes)}: cache with --height, --width and "
            "--num-frames, or draw each batch from clips of one shape"
        )
    embeds = [clip["prompt_embeds"] for clip in clips]
    lengths = torch.tensor([len(one) for one in embeds])
    return LatentBatch(
        key=[clip["key"] for clip in clips],
        caption=[clip["caption"] for clip in clips],
        latents=torch.stack([clip["latents"] for clip in clips]),
        prompt_embeds=torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True),
        prompt_embeds_mask=torch.arange(int(lengths.max())) < lengths[:, None],
    )
