"""Networks that metrics look through: LPIPS and I3D, from files that the user names.

Nothing is downloaded, and a file is only opened when its SHA-256 is that of the published network.
Without the file the metric is absent: no other network stands in for it.
"""

import hashlib
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

# SHA-256 -> what it is. Of torchvision's ImageNet backbones, by their names' first 8 digits too.
LPIPS_FILES: dict[str, Literal["alex", "vgg"]] = {
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02": "alex",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0": "vgg",
}
LPIPS_NAMES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
I3D_FILES = {
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2": "i3d_torchscript.pt",
}
I3D_SIDE = 224  # pixels, each way; the aspect ratio is not kept
LPIPS_MIN_SIDE = 32  # pixels; below, AlexNet's last layers have nothing to look at


@dataclass(frozen=True)
class Network:
    """A network of a metric: `run` maps videos to numbers; `about` goes into the protocol."""

    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    about: dict[str, Any]


@dataclass(frozen=True)
class FeatureNetwork:
    """`features`: uint8 clips `[N, T, H, W, 3]` -> float32 `[N, 400]`."""

    features: Callable[[np.ndarray], np.ndarray]
    about: dict[str, Any]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex; of a folder, of the names and the SHA-256 of its files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_file():
                digest.update(f"{file.name} {sha256_of(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_lpips(weights: Path, device: torch.device | str = "cpu") -> Network:
    """LPIPS v0.1 of torchmetrics; `.run` of two videos `[B, 3, T, H, W]` in [-1, 1] is `[B, T]`.

    `weights`: torchvision's file of the backbone (AlexNet or VGG-16), which decides the variant;
    the linear heads come with torchmetrics. Frames under 32 pixels on a side: NaN.
    Raises ValueError for another file, and where torchvision is not installed.
    """
    found = _hash_of(weights)
    if found not in LPIPS_FILES:
        raise ValueError(
            f"{weights} (SHA-256 {found}) is no backbone of LPIPS: give torchvision's "
            f"{' or '.join(LPIPS_NAMES.values())}"
        )
    kind = LPIPS_FILES[found]
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with _torch_hub_of(weights, LPIPS_NAMES[kind]):
            metric = LearnedPerceptualImagePatchSimilarity(net_type=kind, reduction="none")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"LPIPS needs torchvision ({error}): pip install 'regen-video[eval]'"
        ) from None
    metric = metric.to(device).eval()

    @torch.inference_mode()
    def run(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        batch, _, num_frames, height, width = video.shape
        if min(height, width) < LPIPS_MIN_SIDE:
            return torch.full((batch, num_frames), math.nan)
        one, other = (
            rearrange(part.float().clamp(-1, 1), "b c t h w -> (b t) c h w").to(device)
            for part in (video, reference)
        )
        values = metric.net(one, other, normalize=False).flatten().cpu()
        return rearrange(values, "(b t) -> b t", b=batch)

    about = {"metric": f"LPIPS v0.1, {kind}", "file": weights.name, "sha256": found}
    return Network(run, about)


@contextmanager
def _torch_hub_of(weights: Path, name: str) -> Iterator[None]:
    """torch.hub finds `weights` under `name`, and unpickles tensors alone."""
    before, forced = torch.hub.get_dir(), os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / name).symlink_to(weights.resolve())
        torch.hub.set_dir(folder)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            yield
        finally:
            torch.hub.set_dir(before)
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
            if forced is not None:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced


def load_i3d(
    weights: Path, expected_sha256: str = "", device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """I3D trained on Kinetics-400, for rFVD; its features are the 400 logits.

    `weights`: `i3d_torchscript.pt` (StyleGAN-V), or cd-fvd's `i3d_pretrained_400.pt`, which needs
    cd-fvd. Frames are prepared as cd-fvd does: bilinear to 224 x 224, no antialias, [-1, 1].
    `expected_sha256` says which file is meant where this module does not know it. Raises ValueError
    for any other file.
    """
    found = _hash_of(weights)
    if expected_sha256 and found != expected_sha256.lower():
        raise ValueError(
            f"{weights} has SHA-256 {found}, not the expected {expected_sha256}: get it again"
        )
    if not expected_sha256 and found not in I3D_FILES:
        raise ValueError(
            f"{weights} (SHA-256 {found}) is not {' or '.join(I3D_FILES.values())}; if it is the "
            "I3D that you mean, say so with --fvd-sha256 and that number"
        )
    load = _torchscript_i3d if _is_torchscript(weights) else _cdfvd_i3d
    run = load(weights, device)

    @torch.inference_mode()
    def features(clips: np.ndarray) -> np.ndarray:
        return np.concatenate([run(_i3d_input(clip[None])).cpu().numpy() for clip in clips])

    about = {
        "metric": "rFVD, I3D Kinetics-400 logits",
        "file": weights.name,
        "sha256": found,
        "input": f"bilinear to {I3D_SIDE} x {I3D_SIDE} without antialias, [-1, 1]",
        "covariance": "1 / N, of the whole set",
    }
    return FeatureNetwork(features, about)


def _i3d_input(clips: np.ndarray) -> torch.Tensor:
    """uint8 `[N, T, H, W, 3]` -> float `[N, 3, T, 224, 224]` in [-1, 1]."""
    frames = rearrange(torch.from_numpy(clips).float(), "n t h w c -> (n t) c h w")
    frames = F.interpolate(frames, (I3D_SIDE, I3D_SIDE), mode="bilinear", align_corners=False)
    return rearrange(2 * frames / 255 - 1, "(n t) c h w -> n c t h w", n=len(clips))


def _torchscript_i3d(
    weights: Path, device: torch.device | str
) -> Callable[[torch.Tensor], torch.Tensor]:
    try:
        network = torch.jit.load(str(weights), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{weights} cannot be loaded as TorchScript ({reason})") from None
    return lambda video: network(
        video.to(device), rescale=False, resize=False, return_features=True
    )


def _cdfvd_i3d(weights: Path, device: torch.device | str) -> Callable[[torch.Tensor], torch.Tensor]:
    try:
        from cdfvd.third_party.i3d.utils import load_i3d_model
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{weights} is no TorchScript; weights of cd-fvd need it ({error}): "
            "pip install 'regen-video[eval]'"
        ) from None
    try:
        network = load_i3d_model(torch.device(device), str(weights)).eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{weights} does not fit cd-fvd's I3D ({reason})") from None
    return lambda video: network(video.to(device))


def _is_torchscript(weights: Path) -> bool:
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _hash_of(weights: Path) -> str:
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; name the file of the network's weights")
    return sha256_of(weights)
