"""One clip: an item of a data set -> its frames -> what a latent shard stores of it.

Plain functions of the clip alone: no batch that others are in, so that a clip has the same latents
whoever encodes it, and when.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from regen.data.items import Item, line_about
from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.t2v.cache.config import CacheStorage
from regen.t2v.cache.latent_shards import clip_tensors
from regen.t2v.text_encoder import TextEncoder
from regen.video import frames_to_video, open_video

MAX_FRAMES = 600  # of a clip, where num_frames is not given
MAX_CHUNKS = 16  # of a clip that are encoded together

Row = dict[str, Any]  # what Ray hands on: text, numbers and bytes


def job(item: Item, clips: dict[str, int | None]) -> Row:
    return {"item": asdict(item), **clips}


def decode(row: Row) -> Row:
    """A job -> its frames as bytes, or in `error` the line that says why there are none."""
    item = Item(**row["item"])
    wanted = row["num_frames"]
    done = {"key": item.name, "source": item.source, "caption": item.caption, "error": ""}
    frames: list[np.ndarray] = []
    frame_rate = 0.0
    try:
        with item.as_file() as path:
            try:
                with open_video(path) as reader:
                    frame_rate = float(reader.info.frame_rate)
                    for frame in reader:
                        frames.append(_fit(frame.pixels, row["height"], row["width"]))
                        if len(frames) == (1 if item.is_photo else wanted or MAX_FRAMES):
                            break
                if len({frame.shape for frame in frames}) != 1:
                    raise ValueError("the size changes within the file")
                if wanted and not item.is_photo and len(frames) < wanted:
                    raise ValueError(f"{len(frames)} frames, fewer than --num-frames {wanted}")
            except ValueError as error:
                done["error"] = line_about(item, error, path)
    except OSError as error:
        done["error"] = f"{item}: cannot be read ({error})"
    if done["error"]:
        return {**done, "frames": b"", "shape": [0, 0, 0], "frame_rate": 0.0}
    video = np.stack(frames)
    return {
        **done,
        "frames": video.tobytes(),
        "shape": list(video.shape[:3]),
        "frame_rate": frame_rate,
    }


def _fit(pixels: np.ndarray, height: int | None, width: int | None) -> np.ndarray:
    if height is None or width is None or pixels.shape[:2] == (height, width):
        return pixels
    scale = max(height / pixels.shape[0], width / pixels.shape[1])
    size = (max(width, round(pixels.shape[1] * scale)), max(height, round(pixels.shape[0] * scale)))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(resized[top : top + height, left : left + width])


class ClipEncoder:
    """Frames and a caption -> the tensors of a shard. Holds both models; one for each worker."""

    def __init__(
        self,
        model: str,
        text_encoder: str | None,
        storage: CacheStorage,
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        if num_threads:
            torch.set_num_threads(num_threads)
        self.model = load_model(model, device)
        self.text = TextEncoder.from_pretrained(text_encoder, device)
        self.storage = storage

    def __call__(self, row: Row) -> Row:
        """What `decode` returned -> the same, with tensors (safetensors bytes) for the frames."""
        num_frames, height, width = (int(size) for size in row["shape"])
        done = {name: row[name] for name in ("key", "source", "caption", "frame_rate", "error")}
        done |= {"num_frames": num_frames, "height": height, "width": width, "tensors": b""}
        if row["error"]:
            return done
        frames = np.frombuffer(row["frames"], np.uint8).reshape(num_frames, height, width, 3).copy()
        latents = encode_clip(self.model, frames)
        embeds, mask = self.text.encode([row["caption"]])
        done["tensors"] = save(clip_tensors(latents, embeds[0, mask[0]].cpu(), self.storage))
        return done


def unpack(row: Row) -> tuple[Row, dict[str, torch.Tensor]]:
    """What `ClipEncoder` returned -> (row of the shard, tensors of the clip)."""
    names = ("key", "source", "caption", "num_frames", "height", "width", "frame_rate")
    return {name: row[name] for name in names}, load(row["tensors"])


@torch.inference_mode()
def encode_clip(model: AutoencoderREGEN, frames: np.ndarray) -> torch.Tensor:
    """uint8 `[T, H, W, 3]` -> latents float32 `[8, n, h, w]`, its whole chunks side by side."""
    length = model.geometry.chunk_length
    num_whole = len(frames) // length
    parts = []
    for start in range(0, num_whole, MAX_CHUNKS):
        chunks = frames[start * length : min(start + MAX_CHUNKS, num_whole) * length]
        video = frames_to_video(chunks).unflatten(1, (-1, length)).transpose(0, 1)
        latents = model.encode(video.to(model.device)).latents.cpu()  # [K, 8, 2, h, w]
        parts.append(latents.transpose(0, 1).flatten(1, 2))
    if len(frames) % length:
        video = frames_to_video(frames[num_whole * length :])[None]
        parts.append(model.encode(video.to(model.device)).latents[0].cpu())
    return torch.cat(parts, dim=1)
