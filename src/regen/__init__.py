"""REGEN: video embedders with a re-generative decoder (ICCV 2025). See README.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regen.loading import load_model
    from regen.model.autoencoder import AutoencoderREGEN
    from regen.t2v.pipeline import RegenTextToVideoPipeline
    from regen.t2v.transformer import RegenTransformer3DModel

__version__ = "0.1.0"
__all__ = [
    "AutoencoderREGEN",
    "RegenTextToVideoPipeline",
    "RegenTransformer3DModel",
    "__version__",
    "load_model",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and diffusers take seconds, `regen --help` must not.
    if name == "AutoencoderREGEN":
        from regen.model.autoencoder import AutoencoderREGEN

        return AutoencoderREGEN
    if name == "load_model":
        from regen.loading import load_model

        return load_model
    if name == "RegenTransformer3DModel":
        from regen.t2v.transformer import RegenTransformer3DModel

        return RegenTransformer3DModel
    if name == "RegenTextToVideoPipeline":
        from regen.t2v.pipeline import RegenTextToVideoPipeline

        return RegenTextToVideoPipeline
    raise AttributeError(f"module 'regen' has no attribute {name!r}")
