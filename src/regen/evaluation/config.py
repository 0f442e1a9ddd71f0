"""The options of `regen evaluate`: one frozen dataclass, which is also its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regen.data.locations import check_outside

Storage = Literal["float32", "bfloat16", "int8"]
Benchmark = Literal["davis2019", "mcl-jcv"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure systems on clips. One output folder has one protocol and as many rows as you add."""

    output: Path
    """Folder for results.json, report.html and what they are made of. The same command again goes
    on; a command with other systems adds their rows."""
    data: tuple[str, ...] = ()
    """Folders of clips (a folder of pictures is one), manifests (.csv, .jsonl, .parquet), shards.
    Each is a set with means of its own."""
    benchmark: Benchmark | None = None
    """The one folder of --data is this benchmark as it is published."""
    reference: Path | None = None
    """Instead of --data: a folder of clips that are measured as they are, whole and at their
    size."""
    model: tuple[str, ...] = ()
    """REGEN models: embedded names, folders, hub ids."""
    diffusers: tuple[str, ...] = ()
    """Video autoencoders of diffusers, as CLASS:FOLDER, such as
    AutoencoderKLWan:weights/wan/vae; :tiled after it saves memory, and changes the numbers."""
    system: tuple[str, ...] = ()
    """Python callables, as MODULE:CALLABLE; docs/evaluation.md has the signature."""
    reconstruction: Path | None = None
    """Folder of reconstructions made elsewhere: a file or a folder of pictures for each clip, of
    its name, with the frames and the size of the prepared clip (--export writes those)."""
    reconstruction_name: str | None = None
    """How --reconstruction is called in the report; default: the name of its folder."""
    export: Path | None = None
    """Write the prepared clips there, lossless, for other systems to reconstruct."""
    size: int = 256
    """Short side to this many pixels, centre square; 0: pixels as they are."""
    num_frames: int = 0
    """First frames of a clip that are measured; 0: all."""
    steps: tuple[int, ...] = (1,)
    """Denoising steps of generative decoders; each is a row."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of generative decoders; from several the report has the spread."""
    storage: tuple[Storage, ...] = ("float32",)
    """How a REGEN model's latents are rounded; each is a row."""
    lpips_weights: Path | None = None
    """torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth, in place of the installed
    weights of that network."""
    fvd_weights: Path | None = None
    """i3d_torchscript.pt, or cd-fvd's i3d_pretrained_400.pt, in place of the installed weights."""
    fvd_sha256: str = ""
    """SHA-256 that --fvd-weights has to have, for a file that is not known."""
    fvd_frames: int = 16
    """Frames of a clip that I3D looks at, at least 9. Longer clips are cut into several; shorter
    ones do not count."""
    hue_rotation: float = 0.0
    """Rotate the hues of the clips by so many degrees before all else: whether a system's pictures
    break must not depend on the colours."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the systems; metrics are in float32, Frechet distances in float64."""

    def check(self) -> None:
        """ValueError for options that are out of range or do not go together."""
        for name, numbers in (("--steps", self.steps), ("--num-frames", (self.num_frames,))):
            low = 1 if name == "--steps" else 0
            if not numbers or min(numbers) < low:
                raise ValueError(f"{name} takes numbers of at least {low}, got {list(numbers)}")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"--seeds takes numbers of at least 0, got {list(self.seeds)}")
        for name, values in (("--steps", self.steps), ("--seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a number twice: {list(values)}")
        if self.size < 0 or 0 < self.size < 16:
            raise ValueError(f"--size is 0 (as they are) or at least 16, got {self.size}")
        if self.fvd_frames < 9:
            raise ValueError(f"--fvd-frames is at least 9, which I3D needs, got {self.fvd_frames}")
        if bool(self.data) == bool(self.reference):
            raise ValueError("give --data or --reference: the clips that are measured on")
        for one in (*self.data, *((self.reference,) if self.reference else ())):
            check_outside("--output", self.output, one)
            if self.export:
                check_outside("--export", self.export, one)
        if self.benchmark and len(self.data) != 1:
            raise ValueError(f"--benchmark {self.benchmark} takes one folder, --data FOLDER")
        if self.reconstruction_name and not self.reconstruction:
            raise ValueError("--reconstruction-name names what --reconstruction holds: give both")
        systems = (self.model, self.diffusers, self.system, self.reconstruction, self.export)
        if not any(systems):
            raise ValueError(
                "nothing to do: give --model, --diffusers, --system or --reconstruction, or "
                "--export"
            )

    @property
    def prepared_size(self) -> int | None:
        return None if self.reference or self.size == 0 else self.size

    @property
    def prepared_frames(self) -> int | None:
        return None if self.reference or self.num_frames == 0 else self.num_frames
