"""`regen cache`: a data set -> latent shards, on one machine or, with Ray Data, on many.

Decoding runs in tasks, encoding in actors that hold the models; Ray Data streams between them,
holds back what is ahead, and runs again what a lost worker had. The clips come back in the order of
the data set, and this process writes the shards: which clip is in which follows from the inputs
alone, so whatever dies, the shards are the same. A finished shard is kept: the same command again
goes on.
"""

import hashlib
import json
import logging
import socket
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from regen.data import locations
from regen.data.bad_clips import BadClips
from regen.data.finding import find_items
from regen.data.items import Item
from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.t2v.cache.config import CacheConfig
from regen.t2v.cache.encoding import ClipEncoder, Row, decode, job, unpack
from regen.t2v.cache.latent_shards import (
    DATASET_FILE,
    read_dataset_file,
    read_description,
    shard_path,
    write_dataset_file,
    write_shard,
)
from regen.t2v.cache.statistics import Moments
from regen.t2v.text_encoder import TextEncoder

BAD_LIST = "bad_clips.txt"
CLIPS_PER_BLOCK = 4  # that Ray hands on together
CLIPS_PER_ROUND = 65_536  # that Ray is told of at once
OBJECT_STORE_BYTES = 2**30  # of a Ray that this process starts
CONNECT_S = 10  # a cluster answers within


@dataclass(frozen=True)
class CacheReport:
    """What stands in the folder; `num_kept` shards were finished before."""

    num_clips: int
    num_shards: int
    num_kept: int
    num_bytes: int
    bad: list[str]


def build_cache(data: Sequence[str], output: str | Path, options: CacheConfig) -> CacheReport:
    """Encode what `data` names into latent shards and `dataset.json` in `output`.

    Raises ValueError for inputs that are none, for more bad clips than `max_bad_fraction`, and
    where `output` holds a cache of something else, or another process writes to it.
    """
    if locations.is_url(str(output)):
        raise ValueError(f"{output}: a cache is written to a local folder; copy it from there")
    if (options.height is None) != (options.width is None):
        raise ValueError("--height and --width are given together, or neither")
    if options.address is not None and options.num_workers == 0:
        raise ValueError("--num-workers 0 encodes in this process alone: leave --address out")
    output = Path(output)
    if output.is_file():
        raise ValueError(f"{output} is a file; expected a folder for the cache")
    items = find_items(data, output)
    with locations.only_writer(output):
        return _build_cache(items, output, options)


def _build_cache(items: list[Item], output: Path, options: CacheConfig) -> CacheReport:
    origin = _origin(options)
    size = options.shard_clips
    groups = [items[start : start + size] for start in range(0, len(items), size)]
    hashes = [_inputs(group, origin, options.clips) for group in groups]
    known = {shard_path(output, number) for number in range(len(groups))}
    if strange := sorted(set(output.glob("*.safetensors")) - known):
        raise _other_inputs(strange[0])
    done = [_finished(shard_path(output, n), inputs) for n, inputs in enumerate(hashes)]
    num_kept = len(groups) - done.count(None)
    missing = [number for number, description in enumerate(done) if description is None]
    if missing:
        (output / DATASET_FILE).unlink(missing_ok=True)
    bad = BadClips(output / BAD_LIST, len(items), options.max_bad_fraction)
    bad.start([line for one in done if one is not None for line in one["bad"]])
    num_jobs = sum(len(groups[number]) for number in missing)
    jobs = (job(item, options.clips) for number in missing for item in groups[number])
    encoded = encode_jobs(jobs, num_jobs, options)
    try:
        with tqdm(total=len(items), initial=len(items) - num_jobs, unit="clip") as bar:
            for number in missing:
                clips, lines = [], []
                for _ in groups[number]:
                    row = next(encoded)
                    if row["error"]:
                        lines.append(row["error"])
                        bad.add([row["error"]])
                    else:
                        clips.append(unpack(row))
                    bar.update()
                done[number] = write_shard(
                    shard_path(output, number), clips, lines, _space(origin), hashes[number]
                )
    finally:
        encoded.close()
    return _finish(output, [one for one in done if one is not None], num_kept, origin, options)


def recompute_statistics(folder: str | Path) -> Moments:
    """Merge the statistics of all shards of a cache and write them into its `dataset.json`.

    For folders that were put together from several. Raises ValueError where it is no cache, a
    shard is damaged, or shards are of different encoders.
    """
    folder = Path(folder)
    fields = read_dataset_file(folder)
    moments = Moments()
    shards: list[dict[str, Any]] = []
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} holds no latent shard (.safetensors)")
    for path in paths:
        description = read_description(path)
        if description is None:
            raise ValueError(f"{path} is damaged, or no latent shard")
        if description["space"] != _space(fields):
            raise ValueError(f"{path} is of another encoder than {folder / DATASET_FILE} says")
        moments.merge(Moments.from_dict(description["moments"]))
        shards.append({"file": path.name, "num_clips": len(description["clips"])})
    fields |= moments.statistics()
    fields |= {"shards": shards, "num_clips": sum(one["num_clips"] for one in shards)}
    write_dataset_file(folder, fields)
    return moments


def _origin(options: CacheConfig) -> dict[str, Any]:
    """What decides on the latents of a clip, besides the clip; ValueError for a model that is none.
    Loads both models: a mistake is found before any worker starts."""
    model = load_model(options.model)
    if not isinstance(model, AutoencoderREGEN):
        raise ValueError(
            f"a cache is of latents of AutoencoderREGEN, {options.model} is {type(model).__name__}"
        )
    text = TextEncoder.from_pretrained(options.text_encoder)
    return {
        "model": options.model,
        "encoder_id": model.encoder_id(),
        "temporal_compression_ratio": model.temporal_compression_ratio,
        "spatial_compression_ratio": model.spatial_compression_ratio,
        "storage": options.storage,
        "text_encoder": text.name,
        "text_encoder_id": text.encoder_id(),
        "text_dim": text.dim,
        "text_max_length": text.max_length,
    }


def _space(origin: dict[str, Any]) -> dict[str, Any]:
    """What shards of one data set have in common."""
    names = ("encoder_id", "temporal_compression_ratio", "storage", "text_encoder_id")
    return {name: origin[name] for name in names}


def _inputs(group: list[Item], origin: dict[str, Any], clips: dict[str, int | None]) -> str:
    rows = [[one.name, one.source, one.caption, one.size, one.mark] for one in group]
    fields = [_space(origin), clips, rows]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _finished(path: Path, inputs: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    description = read_description(path)
    if description is not None and description["inputs"] != inputs:
        raise _other_inputs(path)
    return description


def _other_inputs(path: Path) -> ValueError:
    return ValueError(
        f"{path} is of other clips, another model or other options: give the same to resume, or "
        "another folder"
    )


def _finish(
    output: Path,
    shards: list[dict[str, Any]],
    num_kept: int,
    origin: dict[str, Any],
    options: CacheConfig,
) -> CacheReport:
    moments = Moments()
    for shard in shards:
        moments.merge(Moments.from_dict(shard["moments"]))
    num_clips = sum(len(shard["clips"]) for shard in shards)
    if not num_clips:
        raise ValueError(f"no clip could be cached; the reasons are in {output / BAD_LIST}")
    rows: list[dict[str, Any]] = [
        {"file": shard_path(output, number).name, "num_clips": len(shard["clips"])}
        for number, shard in enumerate(shards)
    ]
    fields = {**origin, **options.clips, "num_clips": num_clips, **moments.statistics()}
    write_dataset_file(output, {**fields, "shards": rows})
    return CacheReport(
        num_clips=num_clips,
        num_shards=len(shards),
        num_kept=num_kept,
        num_bytes=sum((output / row["file"]).stat().st_size for row in rows),
        bad=[line for shard in shards for line in shard["bad"]],
    )


# --- who encodes ---


def encode_jobs(jobs: Iterator[Row], num_jobs: int, options: CacheConfig) -> Generator[Any]:
    """What `ClipEncoder` makes of each of `num_jobs` jobs, in their order."""
    if not num_jobs:
        return
    models = (options.model, options.text_encoder, options.storage, options.device)
    if options.num_workers == 0:
        encoder = ClipEncoder(*models)
        for one in jobs:
            yield encoder(decode(one))
        return
    yield from _encode_with_ray(jobs, models, options)


def _encode_with_ray(
    jobs: Iterator[Row], models: tuple[Any, ...], options: CacheConfig
) -> Generator[Row]:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError(
            "regen cache needs Ray: pip install 'regen-video[cache]'; or --num-workers 0, which "
            "encodes in this process alone"
        ) from None
    num_gpus = 1 if options.device == "cuda" else 0
    if options.address is None:
        cores, gpus = torch.multiprocessing.cpu_count(), torch.cuda.device_count()
        num_workers = options.num_workers or default_workers(options.device, cores, gpus)
        ray.init(
            num_cpus=2 * num_workers,  # as many decode as encode; Ray starts no more than these
            num_gpus=num_workers if num_gpus else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    else:
        _check_address(options.address)
        try:
            ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise _no_cluster(options.address, error) from None
        cores, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
        num_workers = options.num_workers or default_workers(options.device, cores, gpus)
        kind, there = ("GPUs", gpus) if num_gpus else ("cores", cores)
        if num_workers > there:
            ray.shutdown()
            raise ValueError(
                f"{num_workers} workers, the cluster at --address {options.address} has {there} "
                f"{kind}: lower --num-workers"
            )
    try:
        encoder: Any = ClipEncoder  # Ray makes one in each actor
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        while some := list(islice(jobs, CLIPS_PER_ROUND)):
            num_blocks = -(-len(some) // CLIPS_PER_BLOCK)
            clips = ray.data.from_items(some, override_num_blocks=num_blocks)
            encoded = clips.map(decode, num_cpus=1).map(
                encoder,
                fn_constructor_args=(*models, None if num_gpus else 1),
                compute=ray.data.ActorPoolStrategy(size=num_workers),
                num_cpus=1,
                num_gpus=num_gpus or None,
            )
            yield from encoded.iter_rows()
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """ValueError for Ray Client, which Ray Data does not run through, and where nothing answers."""
    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address} is of Ray Client, which Ray Data does not run through: run this "
            "on a machine of the cluster with --address auto, or HOST:PORT of its head"
        )
    host, _, port = address.rpartition(":")
    if not host:
        return  # "auto": Ray looks on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> ValueError:
    return ValueError(
        f"no Ray cluster answers at --address {address} ({str(error).splitlines()[0]}): start one "
        "with ray start --head, or leave --address out"
    )


def default_workers(device: str, num_cores: int, num_gpus: int) -> int:
    """One for each GPU, else one for each two cores."""
    return max(1, num_gpus if device == "cuda" else num_cores // 2)
