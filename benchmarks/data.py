"""Clips a second on one core: reading what training draws, against plain PyAV doing the same.

    taskset -c 0 python benchmarks/data.py --clips DIR [--draws 200] [--chunk 9]

Each draw is a stretch of frames as `regen train` draws them: k + 1 frames, 1 to 3 apart, at a
random place of a random clip. Plain PyAV opens the file, seeks to the key frame before, and decodes
to the last frame, converting those wanted. Both take turns, one thread each, and must give equal
pixels. Then the whole work of a batch: drawing, decoding, cropping. Seconds are of the processor.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.clips import Clip, prepare_clips


def plain_read(path: Path, indices: list[int]) -> list[np.ndarray]:
    """Frames at constant rate, as PyAV's users read them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = 1 / (stream.average_rate * stream.time_base)
        first = stream.start_time or 0
        wanted = {first + round(index * step) for index in indices}
        container.seek(min(wanted), stream=stream)
        pictures = []
        for frame in container.decode(stream):
            if frame.pts in wanted:
                pictures.append(frame.to_ndarray(format="rgb24"))
                if len(pictures) == len(wanted):
                    break
        return pictures


def draw(rng: np.random.Generator, clips: list[Clip], chunk: int) -> tuple[Clip, list[int]]:
    clip = clips[rng.integers(len(clips))]
    stride = min(int(rng.integers(1, 4)), max(1, (clip.num_frames - 1) // (chunk - 1)))
    start = int(rng.integers(0, max(1, clip.num_frames - stride * (chunk - 1))))
    indices = [min(start + stride * i, clip.num_frames - 1) for i in range(chunk)]
    return clip, sorted(set(indices))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", required=True, help="folder, manifest or shards")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--chunk", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        clips = prepare_clips([options.clips], Path(cache), decode_once=False).clips
    videos = [clip for clip in clips if not clip.is_photo]
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    num_equal = num_compared = 0
    for index in range(options.draws):
        clip, indices = draw(rng, videos, options.chunk)
        results = {}
        order = ["ours", "plain"] if index % 2 else ["plain", "ours"]
        for name in order:
            if name == "plain" and clip.item.start >= 0:
                continue  # a member of a shard: plain PyAV has no file to open
            started = time.process_time()
            if name == "ours":
                results[name] = clip.read(indices)
            else:
                results[name] = plain_read(Path(clip.item.location), indices)
            seconds[name].append(time.process_time() - started)
        if len(results) == 2 and len(results["plain"]) == len(indices):
            num_compared += 1
            pairs = zip(results["ours"], results["plain"], strict=True)
            num_equal += all(np.array_equal(one, other) for one, other in pairs)
    for name, values in seconds.items():
        if values:
            rate, middle = len(values) / sum(values), 1000 * statistics.median(values)
            print(f"{name:<6} {rate:7.1f} clips/s a core, {middle:.1f} ms in the middle")
    print(f"{num_equal} of {num_compared} draws compared are equal")
    batches = TrainingBatches(clips, BatchConfig(0, 10**6, options.chunk, image_fraction=0.0))
    num_batches = max(1, options.draws // 20)
    started = time.process_time()
    for step in range(num_batches):
        batches[step]
    rate = num_batches * batches.config.video_batch_size / (time.process_time() - started)
    print(f"batches of 96 x 96 crops, all in all: {rate:.1f} clips/s a core")


if __name__ == "__main__":
    main()
