"""Reconstructions by embedders that need their own project's code, for `regen evaluate`.

Runs in that project's folder and environment, which needs no regen: torch, PyAV, Pillow. Reads the
clips that `regen evaluate --export prepared` wrote, writes a folder of PNGs for each:

    python elsewhere.py PROJECT --weights WEIGHTS --clips prepared --output out
    regen evaluate --data DIR --num-frames 36 --output evaluation --reconstruction out

Clips are filled up to the 4 n + 1 frames that all of these take, by repeating the last frame, and
cut back; latents are the mode of the posterior, and go to the decoder as they are.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

Reconstruct = Callable[[torch.Tensor], torch.Tensor]  # [1, 3, T, H, W] in [-1, 1], both


def omnitokenizer(weights: str, device: str) -> Reconstruct:
    """WEIGHTS: imagenet_k600_vae.ckpt. Its pixels are in [-0.5, 0.5]; square pictures only."""
    from OmniTokenizer import OmniTokenizer_VQGAN

    model = OmniTokenizer_VQGAN.load_from_checkpoint(weights)
    model = model.to(device).eval()

    def run(video: torch.Tensor) -> torch.Tensor:
        side = video.shape[-1]
        model.encoder.image_size = model.decoder.image_size = (side, side)
        return 2 * model.decode(model.encode(video / 2, is_image=False), is_image=False)

    return run


def wf_vae(weights: str, device: str) -> Reconstruct:
    """WEIGHTS: a folder of WF-VAE, or of Open-Sora-Plan 1.3."""
    from causalvideovae.model import WFVAEModel

    return _diffusers_like(WFVAEModel.from_pretrained(weights).to(device).eval())


def open_sora_plan(weights: str, device: str) -> Reconstruct:
    """WEIGHTS: the folder vae of Open-Sora-Plan 1.1 or 1.2."""
    from opensora.models.causalvideovae.model import CausalVAEModel

    return _diffusers_like(CausalVAEModel.from_pretrained(weights).to(device).eval())


def cv_vae(weights: str, device: str) -> Reconstruct:
    """WEIGHTS: the folder that has vae3d."""
    from models.modeling_vae import CVVAEModel

    return _diffusers_like(CVVAEModel.from_pretrained(weights, subfolder="vae3d").to(device).eval())


def open_sora(weights: str, device: str) -> Reconstruct:
    """WEIGHTS: OpenSora-VAE-v1.2; takes the 2D autoencoder of PixArt from the hub by itself."""
    from opensora.models.vae import OpenSoraVAE_V1_2

    model = OpenSoraVAE_V1_2(from_pretrained=weights, micro_frame_size=17, micro_batch_size=4)
    model = model.to(device).eval()
    return lambda video: model.decode(model.encode(video), num_frames=video.shape[2])


PROJECTS = {
    "omnitokenizer": omnitokenizer,
    "wf-vae": wf_vae,
    "open-sora-plan": open_sora_plan,
    "cv-vae": cv_vae,
    "open-sora": open_sora,
}


def _diffusers_like(model: torch.nn.Module) -> Reconstruct:
    def run(video: torch.Tensor) -> torch.Tensor:
        encoded = model.encode(video)
        posterior = getattr(encoded, "latent_dist", encoded)
        decoded = model.decode(posterior.mode())
        return getattr(decoded, "sample", decoded)

    return run


def read(path: Path) -> torch.Tensor:
    """`[1, 3, T, H, W]` in [-1, 1]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]
    return video.float() / 127.5 - 1


def write(folder: Path, video: torch.Tensor) -> None:
    """PNGs 00000.png, ... in a folder that has its name when it is whole."""
    frames = ((video[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    beside = folder.with_name(f".{folder.name}")
    beside.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames.permute(1, 2, 3, 0).numpy()):
        Image.fromarray(frame).save(beside / f"{index:05d}.png")
    beside.rename(folder)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", choices=list(PROJECTS))
    parser.add_argument("--weights", required=True)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    reconstruct = PROJECTS[options.project](options.weights, options.device)
    for path in sorted(options.clips.rglob("*.mkv")):
        folder = options.output / path.relative_to(options.clips).with_suffix("")
        if folder.exists():
            continue
        video = read(path)
        num_frames = video.shape[2]
        filling = [video[:, :, -1:]] * (-(num_frames - 1) % 4)
        again = reconstruct(torch.cat([video, *filling], dim=2).to(options.device))
        write(folder, again[:, :, :num_frames])
        print(folder, flush=True)


if __name__ == "__main__":
    main()
