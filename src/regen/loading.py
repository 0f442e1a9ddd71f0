"""`load_model`: the one way to a ready model: embedded weights, a folder, or a hub id.

`new_model`: a preset with random weights.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError

from regen.baselines.magvit import AutoencoderMAGVITv2
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.presets import MAGVIT_PRESETS, PRESETS

DEFAULT_MODEL = "natural@8"
# Models that came with the package until 2026-11, and what has taken their place.
SUPERSEDED = {"tiny-8x8x8": "natural@8", "tiny-8x8x32": "natural"}
Autoencoder = AutoencoderREGEN | AutoencoderMAGVITv2
CLASSES: dict[str, type[Autoencoder]] = {
    one.__name__: one for one in (AutoencoderREGEN, AutoencoderMAGVITv2)
}


def find_device(device: str) -> str:
    """The device that `device` names, auto included; ValueError where it cannot be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(device).type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("not a device to compute on")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {device} cannot be used here ({reason}); try --device cpu"
        ) from None
    return device


def new_model(preset: str, **changes: Any) -> Autoencoder:
    """A preset of `regen.model.presets` with random weights and `changes` of its arguments."""
    if preset in MAGVIT_PRESETS:
        return AutoencoderMAGVITv2(**(MAGVIT_PRESETS[preset]() | changes))
    return AutoencoderREGEN(**(PRESETS[preset]() | changes))


def embedded_models() -> dict[str, Path]:
    """Names of the models that came with the package, and their folders."""
    root = Path(str(files("regen") / "weights"))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def find_model(model: str) -> Path | str:
    """The folder of `model`, or the hub id that it is; see `load_model`. Reads no weights.

    Raises ValueError where it is neither, or the folder holds no model of this kind.
    """
    model, _ = _split_ratio(model)
    folder = embedded_models().get(model, Path(model))
    if folder.is_dir():
        _check_config(folder / "config.json")
        return folder
    if model in SUPERSEDED:
        raise ValueError(
            f"{model} does not come with this version: give {SUPERSEDED[model]}, which takes its "
            "place; its latents are decoded by the version that encoded them"
        )
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        names = ", ".join(embedded_models()) or "none came with this package"
        raise ValueError(
            f"no model {model}: give an embedded one ({names}), a folder with config.json, "
            "or a hub id (owner/name)"
        )
    return model


def is_model(model: str) -> bool:
    """Whether `model` is an embedded one or a folder of one; hub ids are not asked for."""
    name, mark, ratio = model.rpartition("@")
    if not mark or not ratio.isdecimal():
        name = model
    return name in embedded_models() or (Path(name) / "config.json").exists()


def load_model(
    model: str = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """The model in eval mode. `model`: an embedded name, a folder with config.json, or a hub id.

    `NAME@RATIO` makes a model of k compress RATIO times in time, at most k; see
    `AutoencoderREGEN.set_chunk_ratio`. Only a hub id (`owner/name`) touches the network. Raises
    ValueError where there is no such model, or its weights are damaged or do not fit its
    configuration.
    """
    found = find_model(model)
    with loading(f"model {model}"):
        kind = CLASSES[AutoencoderREGEN.load_config(found)["_class_name"]]
        loaded = load_strictly(kind, found, dtype)
    for name, tensor in loaded.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"cannot load model {model}: damaged, {name} holds non-finite numbers")
    ratio = _split_ratio(model)[1]
    if ratio is not None:
        if not loaded.supports_frame_times:
            raise ValueError(
                f"cannot load model {model}: only AutoencoderREGEN takes another ratio"
            )
        try:
            loaded.set_chunk_ratio(ratio)
        except ValueError as error:
            raise ValueError(f"cannot load model {model}: {error}") from None
    return loaded.to(device).eval()


def _split_ratio(model: str) -> tuple[str, int | None]:
    """`NAME@RATIO` -> both; a folder that is named so is a name."""
    name, mark, ratio = model.rpartition("@")
    if not mark or Path(model).is_dir():
        return model, None
    if not ratio.isdecimal():
        raise ValueError(f"{model}: after the @ comes a ratio in time, as in natural@8")
    return name, int(ratio)


def read_class_name(path: Path, writers: str) -> tuple[str | None, dict[str, Any]]:
    """(_class_name, everything) of a JSON file of diffusers; ValueError without it, naming who
    writes such folders."""
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}: give the folder {writers}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): get the model again") from None
    config = config if isinstance(config, dict) else {}
    return config.get("_class_name"), config


def _check_config(path: Path) -> None:
    """ValueError for a foreign config.json, which would build a model of the default, huge size."""
    name, _ = read_class_name(path, "that save_pretrained or regen train wrote")
    if name not in CLASSES:
        is_run = (path.parent / "model" / "config.json").is_file()
        hint = f": of a run give {path.parent / 'model'}" if is_run else ""
        raise ValueError(f"{path} is of a model {name}, expected {' or '.join(CLASSES)}{hint}")


@contextmanager
def loading(what: str) -> Iterator[None]:
    """diffusers loads without its remarks; what it raises becomes ValueError, in one line."""
    verbosity, bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity(CRITICAL)
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"cannot load {what}: {reason}") from None
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()


def load_strictly(kind: Any, folder: Path | str, dtype: torch.dtype) -> Any:
    """A model of the class `kind`; ValueError where its weights are not those of its config."""
    model, details = kind.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if details.get(problem):
            names = ", ".join(str(name) for name in list(details[problem])[:3])
            raise ValueError(f"{problem.replace('_', ' ')}: {names}")
    return model
