"""A small model with random weights, for all tests that need one and not a good one."""

from pathlib import Path

import pytest
import torch

from regen.model.autoencoder import AutoencoderREGEN
from regen.model.presets import natural_32x
from regen.perceptual import weights

torch.set_num_threads(1)  # the models and pictures are so small that threads only cost

# `natural_32x`, narrow, of one block, and with k = 8.
SMALL = natural_32x() | {
    "temporal_compression_ratio": 8,
    "encoder_block_out_channels": (8, 8),
    "encoder_strides": ((2, 1), (1, 1)),
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "siren_width": 8,
}


def make_small_model(seed: int = 0) -> AutoencoderREGEN:
    """Random weights from `seed`, no layer left at zero, latents of about unit deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoencoderREGEN(**SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05, generator=generator)
        noise_weights = model.dit.patch_embed.weight[:, : 3 * 8**2]
        noise_weights.normal_(0, 0.05, generator=generator)
        model.latents_mean.normal_(0, 0.1, generator=generator)
        model.latents_std.fill_(0.5)
    return model.eval()


# LPIPS and I3D take seconds: their weights are absent, but for tests marked `published`.
PUBLISHED = dict(weights.PUBLISHED)
weights.PUBLISHED.update({name: ("not-installed", *rest) for name, (_, *rest) in PUBLISHED.items()})


@pytest.fixture(autouse=True)
def published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("published"):
        return
    monkeypatch.setattr(weights, "PUBLISHED", PUBLISHED)
    for network in PUBLISHED:
        try:
            weights.find_published(network)
        except weights.WeightsAbsent as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def small_model() -> AutoencoderREGEN:
    return make_small_model()


@pytest.fixture(scope="session")
def small_model_folder(
    small_model: AutoencoderREGEN, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("small_model")
    small_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder of 16 numbers a token, with random weights."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("small_text")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "red",
        "blue",
        "ball",
        "square",
        "moves",
        "left",
        "right",
        "slowly",
        "two",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with another encoder."""
    folder = tmp_path_factory.mktemp("other_model")
    make_small_model(seed=1).save_pretrained(folder)
    return folder
