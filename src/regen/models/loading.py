"""`load_model`: the one way to a ready model: embedded weights, a folder, or a hub id."""

import json
import warnings
from importlib.resources import files
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError

from regen.models.autoencoder import AutoencoderREGEN

DEFAULT_MODEL = "tiny-8x8x8"


def embedded_models() -> dict[str, Path]:
    """Names of the models that came with the package, and their folders."""
    root = Path(str(files("regen") / "weights"))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def find_model(model: str) -> Path | str:
    """The folder of `model`, or the hub id that it is; see `load_model`. Reads no weights.

    Raises ValueError where it is neither, or the folder holds no model of this kind.
    """
    folder = embedded_models().get(model, Path(model))
    if folder.is_dir():
        _check_config(folder / "config.json")
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        names = ", ".join(embedded_models()) or "none came with this package"
        raise ValueError(
            f"no model {model}: give an embedded one ({names}), a folder with config.json, "
            "or a hub id (owner/name)"
        )
    return model


def load_model(
    model: str = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AutoencoderREGEN:
    """The model in eval mode. `model`: an embedded name, a folder with config.json, or a hub id.

    Only a hub id (`owner/name`) touches the network. Raises ValueError where there is no such
    model, or its weights are damaged or do not fit its configuration.
    """
    found = find_model(model)
    try:
        loaded, details = _from_pretrained(found, dtype)
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"cannot load model {model}: {reason}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if details.get(problem):
            names = ", ".join(str(name) for name in list(details[problem])[:3])
            raise ValueError(f"cannot load model {model}: {problem.replace('_', ' ')}: {names}")
    for name, tensor in loaded.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"cannot load model {model}: damaged, {name} holds non-finite numbers")
    return loaded.to(device).eval()


def _check_config(path: Path) -> None:
    """ValueError for a foreign config.json, which would build a model of the default, huge size."""
    if not path.is_file():
        raise ValueError(
            f"{path.parent} holds no config.json: give the folder that save_pretrained or "
            "regen train wrote"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): get the model again") from None
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != AutoencoderREGEN.__name__:
        raise ValueError(f"{path} is of a model {name}, expected {AutoencoderREGEN.__name__}")


def _from_pretrained(
    model: Path | str, dtype: torch.dtype
) -> tuple[AutoencoderREGEN, dict[str, list[object]]]:
    """diffusers' loading without its remarks: problems are in the second value."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoencoderREGEN.from_pretrained(
                model, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    finally:
        diffusers_logging.set_verbosity(verbosity)
