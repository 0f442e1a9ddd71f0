"""Networks that metrics look through: LPIPS and I3D, ready to run on what evaluation has.

Their weights are the published ones (`regen.perceptual.weights`), or those of files that the user
names; such a file is only opened when its SHA-256 is a known one, or the one that was asked for.
Without weights a metric is absent: no other network stands in for it.
"""

import hashlib
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from regen.perceptual.i3d import I3D, SIDE
from regen.perceptual.lpips import LPIPS, MIN_SIDE, LPIPSNetwork
from regen.perceptual.weights import COMMAND, PUBLISHED, WeightsAbsent

# SHA-256 of torchvision's ImageNet backbones, and of StyleGAN-V's TorchScript.
LPIPS_FILES: dict[str, LPIPSNetwork] = {
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02": "alex",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0": "vgg",
}
LPIPS_NAMES = "alexnet-owt-7be5be79.pth or vgg16-397923af.pth"
I3D_FILES = {
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2": "i3d_torchscript.pt",
}
ABSENT = f"absent, the weights are not installed: {COMMAND}"


@dataclass(frozen=True)
class Network:
    """LPIPS: `run` of two videos `[B, 3, T, H, W]` in [-1, 1] is float32 `[B, T]`.

    `about` goes into the protocol.
    """

    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    about: dict[str, Any]


@dataclass(frozen=True)
class FeatureNetwork:
    """I3D: `features` of uint8 clips `[N, T, H, W, 3]` are float32 `[N, 400]`."""

    features: Callable[[np.ndarray], np.ndarray]
    about: dict[str, Any]


@dataclass(frozen=True)
class Networks:
    """What there is: LPIPS by the name of its column, I3D of rFVD."""

    lpips: dict[str, Network]
    i3d: FeatureNetwork | None

    @property
    def about(self) -> dict[str, dict[str, Any] | None]:
        """For the protocol; None where a network's weights are absent."""
        known = {name: network.about for name, network in self.lpips.items()}
        known |= {"rfvd": self.i3d.about} if self.i3d else {}
        return {name: known.get(name) for name in ("lpips_alex", "lpips_vgg", "rfvd")}


def load_networks(
    lpips_file: Path | None, i3d_file: Path | None, i3d_sha256: str, device: str
) -> Networks:
    """All networks whose weights are installed or named.

    Raises ValueError for a file that is not what it should be.
    """
    named = None if lpips_file is None else _kind_of(lpips_file)
    kinds: tuple[LPIPSNetwork, ...] = ("alex", "vgg")
    lpips = {
        f"lpips_{kind}": network
        for kind in kinds
        if (network := load_lpips(kind, lpips_file if kind == named else None, device))
    }
    return Networks(lpips, load_i3d(i3d_file, i3d_sha256, device))


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


def _kind_of(file: Path) -> LPIPSNetwork:
    found = _hash_of(file)
    if found not in LPIPS_FILES:
        raise ValueError(
            f"{file} (SHA-256 {found}) is no backbone of LPIPS: give torchvision's {LPIPS_NAMES}"
        )
    return LPIPS_FILES[found]


def load_lpips(kind: LPIPSNetwork, file: Path | None = None, device: str = "cpu") -> Network | None:
    """LPIPS v0.1 of the published weights, or of torchvision's backbone in `file`.

    None without `file` where the weights are not installed. Frames under 32 (AlexNet) or 16
    (VGG-16) pixels on a side: NaN.
    """
    try:
        network = LPIPS(kind, file).to(device)
    except WeightsAbsent:
        return None

    @torch.inference_mode()
    def run(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        batch, _, num_frames, height, width = video.shape
        if min(height, width) < MIN_SIDE[kind]:
            return torch.full((batch, num_frames), math.nan)
        one, other = (
            rearrange(part.float().clamp(-1, 1), "b c t h w -> (b t) c h w").to(device)
            for part in (video, reference)
        )
        return rearrange(network(one, other).cpu(), "(b t) -> b t", b=batch)

    return Network(run, {"metric": f"LPIPS v0.1, {kind}", **_file_about(kind, file)})


def load_i3d(
    file: Path | None = None, expected: str = "", device: str = "cpu"
) -> FeatureNetwork | None:
    """I3D trained on Kinetics-400, for rFVD; its features are the 400 logits.

    `file`: `i3d_torchscript.pt` (StyleGAN-V), or cd-fvd's `i3d_pretrained_400.pt`, whose SHA-256 is
    to be said with `expected`. Frames are prepared as cd-fvd does: bilinear to 224 x 224, no
    antialias, [-1, 1]. None without `file` where the weights are not installed. Raises ValueError
    for another file.
    """
    found = "" if file is None else _hash_of(file)
    if file is not None and expected and found != expected.lower():
        raise ValueError(f"{file} has SHA-256 {found}, not the expected {expected}: get it again")
    if file is not None and not expected and found not in I3D_FILES:
        raise ValueError(
            f"{file} (SHA-256 {found}) is not {' or '.join(I3D_FILES.values())}; if it is the "
            "I3D that you mean, say so with --fvd-sha256 and that number"
        )
    if file is not None and _is_torchscript(file):
        run = _torchscript_i3d(file, device)
    else:
        try:
            run = I3D(file).to(device).__call__
        except WeightsAbsent:
            return None

    @torch.inference_mode()
    def features(clips: np.ndarray) -> np.ndarray:
        videos = (_i3d_input(clip[None]).to(device) for clip in clips)
        return np.concatenate([run(video).cpu().numpy() for video in videos])

    about = {
        "metric": "rFVD, I3D Kinetics-400 logits",
        **_file_about("i3d", file),
        "input": f"bilinear to {SIDE} x {SIDE} without antialias, [-1, 1]",
        "covariance": "1 / N, of the whole set",
    }
    return FeatureNetwork(features, about)


def _file_about(network: str, file: Path | None) -> dict[str, str]:
    if file is not None:
        return {"file": file.name, "sha256": sha256_of(file)}
    _, name, digest = PUBLISHED[network]
    return {"file": name, "sha256": digest}


def _i3d_input(clips: np.ndarray) -> torch.Tensor:
    """uint8 `[N, T, H, W, 3]` -> float `[N, 3, T, 224, 224]` in [-1, 1]; not cropped."""
    frames = rearrange(torch.from_numpy(clips).float(), "n t h w c -> (n t) c h w")
    frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return rearrange(2 * frames / 255 - 1, "(n t) c h w -> n c t h w", n=len(clips))


def _torchscript_i3d(file: Path, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    try:
        network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} cannot be loaded as TorchScript ({reason})") from None
    return lambda video: network(video, rescale=False, resize=False, return_features=True)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _hash_of(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; name the file of the network's weights")
    return sha256_of(file)
