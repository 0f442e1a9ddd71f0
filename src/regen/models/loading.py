"""`load_model`: the one way to a ready model, from a name of embedded weights, a folder, or a hub id."""

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


def load_model(
    model: str = DEFAULT_MODEL, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> AutoencoderREGEN:
    """The model in eval mode. `model`: an embedded name, a folder with config.json, or a hub id (`owner/name`).

    Only a hub id touches the network. Raises ValueError where there is no such model, or its weights are damaged or
    do not fit its configuration.
    """
    folder = embedded_models().get(model, Path(model))
    if not folder.is_dir() and (model.count("/") != 1 or model.startswith((".", "/")) or Path(model).suffix):
        names = ", ".join(embedded_models()) or "none"
        raise ValueError(f"no model {model}: give an embedded one ({names}), a folder with config.json, or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: give the folder that save_pretrained or regen train wrote")
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded, details = AutoencoderREGEN.from_pretrained(
                folder if folder.is_dir() else model, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot load model {model}: {reason}") from None
    finally:
        diffusers_logging.set_verbosity(verbosity)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if details.get(problem):
            raise ValueError(f"cannot load model {model}: {problem.replace('_', ' ')}: {list(details[problem])[:3]}")
    broken = [name for name, tensor in loaded.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"cannot load model {model}: weights that are not finite in {broken[0]}: they are damaged")
    return loaded.to(device).eval()
