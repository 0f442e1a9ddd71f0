"""`regen evaluate`: systems x clips -> a file for each pair, then results.json and report.html.

A pair that has its file is not measured again, so that a run resumes after any end. Processes of
`accelerate launch` share the clips; all sums are over the files, in the order of the clips, so that
their number changes nothing.
"""

import hashlib
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm import tqdm

from regen.evaluation.config import EvaluateConfig
from regen.evaluation.diffusers_systems import diffusers_system
from regen.evaluation.measure import features_of, measure, summarize
from regen.evaluation.networks import FeatureNetwork, Networks, load_networks
from regen.evaluation.protocols import (
    METRICS,
    NETWORK_METRICS,
    EvalClip,
    absent_line,
    find_clips,
    protocol_record,
)
from regen.evaluation.report import write_report
from regen.evaluation.sheets import comparison, time_slices, write_picture
from regen.evaluation.systems import (
    NeuralSystem,
    System,
    callable_system,
    folder_system,
    regen_system,
)
from regen.files import write_json
from regen.loading import find_device
from regen.video import write_video

PATIENCE = timedelta(hours=12)  # processes wait that long for the one with the slowest clips
PACKAGES = ("regen-video", "torch", "diffusers", "torchmetrics", "accelerate", "numpy", "av")


@dataclass(frozen=True)
class Row:
    """A system with its steps: one line of the report, one folder of files."""

    system: System
    steps: int

    @property
    def name(self) -> str:
        if not self.system.is_generative:
            return self.system.name
        return f"{self.system.name}, {self.steps} step{'s' * (self.steps > 1)}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its numbers from any other's, but for the protocol and the clip."""
        steps = {"steps": self.steps} if self.system.is_generative else {}
        return {**self.system.about, **steps}

    @property
    def folder(self) -> str:
        return f"{_file_name(self.name)}-{_digest(self.identity)[:8]}"

    def seeds(self, config: EvaluateConfig) -> list[int]:
        return list(config.seeds) if self.system.is_generative else [0]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure all that `config` names; the content of results.json, with all rows of the folder.

    Raises ValueError (one line) for what cannot be read or does not fit, and where the folder holds
    another protocol.
    """
    config.check()
    accelerator = _accelerator()
    device = str(accelerator.device) if config.device == "auto" else config.device
    find_device(device)
    clips, notes = find_clips(config)
    networks = load_networks(config.lpips_weights, config.fvd_weights, config.fvd_sha256, device)
    protocol = _agree_on_protocol(config, clips, notes, networks, accelerator)
    hashes = {entry["id"]: entry["sha256"] for entry in protocol["clips"]}
    mine = clips[accelerator.process_index :: accelerator.num_processes]
    is_main = accelerator.is_main_process
    if config.export:
        _agree_on_export(config, protocol, accelerator)
        export_clips(mine, config, is_main)
    for system in _systems(config, clips, device):
        for steps in config.steps if system.is_generative else config.steps[:1]:
            row = Row(system, steps)
            folder = config.output / "rows" / row.folder
            if is_main:
                _describe(row, folder, config, clips, accelerator)
            for clip in tqdm(mine, row.name, unit="clip", leave=False, disable=_quiet(is_main)):
                key = _digest([protocol, row.identity, hashes[clip.id], system.mark(clip)])
                _measure_clip(row, clip, config, key, folder, networks)
    accelerator.wait_for_everyone()
    if not is_main:
        return {}
    rows = list(_collect(config.output, clips, networks.i3d is not None))
    names = [one["name"] for one in rows]
    for one in rows:  # a system that has changed is another one
        if names.count(one["name"]) > 1:
            one["name"] += f" [{one['folder'][-8:]}]"
    results = {"protocol": protocol, "rows": rows}
    _write_json(config.output / "results.json", results)
    if results["rows"]:
        write_report(results, config.output)
    return results


def _accelerator() -> Accelerator:
    num_launched = int(os.environ.get("WORLD_SIZE", 1))
    return Accelerator(
        cpu=num_launched > 1 and not torch.cuda.is_available(),  # else each would be alone
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def _systems(config: EvaluateConfig, clips: list[EvalClip], device: str) -> Iterator[System]:
    """One after the other, so that one model at a time is in memory."""
    dtype = getattr(torch, config.dtype)
    for name in config.model:
        for storage in config.storage:
            yield regen_system(name, device, dtype, storage)
    for spec in config.diffusers:
        yield diffusers_system(spec, device, dtype)
    for spec in config.system:
        yield callable_system(spec, device)
    if config.reconstruction:
        name = config.reconstruction_name or config.reconstruction.resolve().name
        yield folder_system(config.reconstruction, name, clips)


def _agree_on_protocol(
    config: EvaluateConfig,
    clips: list[EvalClip],
    notes: dict[str, Any],
    networks: Networks,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The protocol of the folder: the one that stands there, or, in a new folder, this one."""
    path = config.output / "protocol.json"
    if accelerator.is_main_process:
        ours = protocol_record(config, clips, notes, networks.about, _quiet(True) is None)
        if path.is_file():
            theirs = _read_json(path)
            differing = [name for name in ours if theirs.get(name) != ours[name]]
            if differing:
                raise ValueError(
                    f"{config.output} holds an evaluation with another protocol (other "
                    f"{', '.join(differing)}), and its rows could not be compared: give another "
                    "--output, or the same options"
                )
        else:
            _write_json(path, ours)
    accelerator.wait_for_everyone()
    return _read_json(path)


def _agree_on_export(
    config: EvaluateConfig, protocol: dict[str, Any], accelerator: Accelerator
) -> None:
    """ValueError where the folder of exported clips holds those of another protocol."""
    assert config.export is not None
    path, ours = config.export / ".protocol.json", {"protocol": _digest(protocol)}
    if accelerator.is_main_process:
        if path.is_file() and _read_json(path) != ours:
            raise ValueError(
                f"{config.export} holds clips exported by another protocol: give another --export"
            )
        _write_json(path, ours)
    accelerator.wait_for_everyone()


# -- one clip -------------------------------------------------------------------------------------


def _measure_clip(
    row: Row,
    clip: EvalClip,
    config: EvaluateConfig,
    key: str,
    folder: Path,
    networks: Networks,
) -> None:
    """Bring the file of this clip up to date: a result for each seed."""
    path = folder / "clips" / f"{_file_name(clip.id)}.json"
    record = _read_json(path) if path.is_file() else {}
    if record.get("key") != key:
        record = {"key": key, "id": clip.id, "set": clip.set_name, "seeds": {}}
    waiting = [seed for seed in row.seeds(config) if str(seed) not in record["seeds"]]
    if not waiting:
        return
    frames, i3d = clip.read(config), networks.i3d
    if i3d is not None:
        _source_features(config.output, clip, frames, i3d, config.fvd_frames)
    for seed in waiting:
        result = row.system.reconstruct(clip, frames, row.steps, seed)
        values = measure(frames, result.frames, row.system.chunk_length, networks.lpips)
        if i3d is not None:
            values["features"] = features_of(i3d, result.frames, config.fvd_frames)
        values |= {"encode_s": result.encode_s, "decode_s": result.decode_s}
        record |= {"size": list(frames.shape[:3]), "latent_shape": result.latent_shape}
        record |= {"num_bytes": result.num_bytes}
        if not record["seeds"]:
            pictures = folder / "pictures" / _file_name(clip.id)
            picked = [0, len(frames) // 2, len(frames) - 1]
            sheet = np.concatenate(list(comparison(frames[picked], result.frames[picked])))
            write_picture(pictures.with_name(f"{pictures.name}.jpg"), sheet)
            slices = time_slices((frames, result.frames), row.system.chunk_length)
            write_picture(pictures.with_name(f"{pictures.name}.png"), slices)
        record["seeds"][str(seed)] = values
        _write_json(path, record)


def _source_features(
    output: Path, clip: EvalClip, frames: np.ndarray, i3d: FeatureNetwork, num_frames: int
) -> None:
    path = output / "source" / f"{_file_name(clip.id)}.json"
    if not path.is_file():
        _write_json(path, {"id": clip.id, "features": features_of(i3d, frames, num_frames)})


def export_clips(clips: list[EvalClip], config: EvaluateConfig, is_main: bool = True) -> None:
    """The prepared clips as lossless .mkv in `config.export`, NAME.mkv of each; whole ones stay."""
    assert config.export is not None
    for clip in tqdm(clips, "export", unit="clip", leave=False, disable=_quiet(is_main)):
        path = config.export / f"{clip.stem}.mkv"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, clip.read(config), Fraction(25))


# -- rows -----------------------------------------------------------------------------------------


def _describe(
    row: Row,
    folder: Path,
    config: EvaluateConfig,
    clips: list[EvalClip],
    accelerator: Accelerator,
) -> None:
    """row.json: the system, its cost, and by what it was measured; once for a row."""
    path = folder / "row.json"
    before = _read_json(path) if path.is_file() else {}
    seeds = sorted({*before.get("seeds", []), *row.seeds(config)})
    if before:
        if seeds != before["seeds"]:
            _write_json(path, {**before, "seeds": seeds})
        return
    cost = None
    if isinstance(row.system, NeuralSystem):
        cost = row.system.cost(clips[0].read(config), row.steps)
    described = {
        "name": row.name,
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
        "about": row.identity,
        "seeds": seeds,
        "is_generative": row.system.is_generative,
        "chunk_length": row.system.chunk_length,
        "cost": cost,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "processes": accelerator.num_processes,
        "machine": _machine(config, accelerator),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    _write_json(path, described)


def _machine(config: EvaluateConfig, accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device if config.device == "auto" else torch.device(config.device)
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": config.dtype,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _collect(output: Path, clips: list[EvalClip], has_rfvd: bool) -> Iterator[dict[str, Any]]:
    """Every row that stands in the folder with all clips, in the order in which they were made."""
    source_features = None
    if has_rfvd:
        source_features = {
            clip.id: _read_json(output / "source" / f"{_file_name(clip.id)}.json")["features"]
            for clip in clips
            if (output / "source" / f"{_file_name(clip.id)}.json").is_file()
        }
    described = [(path, _read_json(path)) for path in output.glob("rows/*/row.json")]
    for path, row in sorted(described, key=lambda one: one[1]["started"]):
        files = [path.parent / "clips" / f"{_file_name(clip.id)}.json" for clip in clips]
        records = [_read_json(file) for file in files if file.is_file()]
        # Seeds that all clips have: another run may be on its way with more.
        seeds = [seed for seed in row["seeds"] if all(str(seed) in one["seeds"] for one in records)]
        if len(records) < len(clips) or not seeds:
            continue
        names = list(dict.fromkeys(clip.set_name for clip in clips))
        sets = {
            name: summarize(
                [one for one in records if one["set"] == name],
                seeds,
                row["chunk_length"],
                source_features,
            )
            for name in names
        }
        row |= {"folder": path.parent.name, "seeds": seeds, "sets": sets}
        row["compression"] = compression(records, row["about"])
        row["timing"] = _timing(records)
        row["clips"] = [_of_clip(record, seeds) for record in records]
        yield row


def compression(records: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Frames per latent frame, and pixel values (RGB) per latent value, over all clips.

    `factor` is LTX-Video's compression factor (App. D, Fig. 12 of the paper): 3 s^2 k / channels of
    the nominal ratios, which counts no first frame and no second latent frame of a chunk.
    `bits_per_pixel` is of files, or of latents as they are stored.
    """
    pixels = sum(math.prod(one["size"]) for one in records)
    known: dict[str, Any] = {}
    if all(one["latent_shape"] for one in records):
        values = sum(math.prod(one["latent_shape"]) for one in records)
        known = {
            "latent_channels": records[0]["latent_shape"][0],
            "frames_per_latent_frame": sum(one["size"][0] for one in records)
            / sum(one["latent_shape"][1] for one in records),
            "values_ratio": 3 * pixels / values,
        }
        if "bits_per_latent_value" in about:
            known["bits_per_pixel"] = about["bits_per_latent_value"] * values / pixels
        if "nominal" in about:
            time, space = about["nominal"]
            known["nominal"] = f"{space} x {space} x {time}"
            known["factor"] = 3 * space**2 * time / known["latent_channels"]
    if all(one["num_bytes"] for one in records):
        known["bits_per_pixel"] = 8 * sum(one["num_bytes"] for one in records) / pixels
    return known


def _timing(records: list[dict[str, Any]]) -> dict[str, float]:
    """Median over clips and seeds, ms per frame; of clips of one size it says something."""
    timing = {}
    for name in ("encode_s", "decode_s"):
        values = [
            1000 * values[name] / one["size"][0]
            for one in records
            for values in one["seeds"].values()
            if values[name] is not None
        ]
        if values:
            timing[name.replace("_s", "_ms_per_frame")] = float(np.median(values))
    return timing


def _of_clip(record: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """A clip for results.json: means over the seeds, PSNR at each, nothing by frame."""
    every = [record["seeds"][str(seed)] for seed in seeds]
    values = {
        name: _mean_of([one[name] for one in every])
        for name in every[0]
        if name not in ("frames", "features")
    }
    if len(seeds) > 1:
        values["psnr_by_seed"] = [record["seeds"][str(seed)]["psnr"] for seed in seeds]
    kept = ("id", "set", "size", "latent_shape", "num_bytes")
    return {name: record[name] for name in kept} | {"picture": _file_name(record["id"])} | values


def _mean_of(values: list[Any]) -> Any:
    """Of numbers, or of lists of one length by position; None where one is not defined."""
    if any(one is None for one in values):
        return None
    mean: Any = np.mean(values, axis=0).tolist()
    return mean


def summary_rows(config: EvaluateConfig, results: dict[str, Any]) -> list[tuple[str, str]]:
    """What the command prints of `evaluate`'s results; nothing in processes but the first."""
    lines = []
    for row in results.get("rows", []):
        for name, summary in row["sets"].items():
            mean = summary["mean"]
            cells = [f"{mean['psnr']:.2f} dB"]
            for metric in ("ssim", *NETWORK_METRICS):
                if metric in mean:
                    cells.append(f"{METRICS[metric][0]} {mean[metric]:.4f}")
            lines.append((f"{row['name']} on {name}", "  ".join(cells)))
    if results and (line := absent_line(results["protocol"])):
        lines.append(line)
    if results.get("rows"):
        lines.append(("written", str(config.output / "report.html")))
    if results and config.export:
        lines.append(("prepared clips", str(config.export)))
    return lines


# -- files ----------------------------------------------------------------------------------------


def _quiet(is_main: bool) -> bool | None:
    """For tqdm's `disable`: None is quiet where nobody looks."""
    return None if is_main else True


def _file_name(name: str) -> str:
    """A name that every file system takes; a digest keeps those apart that would be one."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain[:80]}-{_digest(name)[:6]}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    """Whole or not at all; NaN, which JSON has not, is null."""
    write_json(path, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and run again") from None
