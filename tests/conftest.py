"""A small model with random weights, for all tests that need one and not a good one."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import regen
from regen.cli import main
from regen.data.clips import prepare_clips
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.presets import PRESETS
from regen.perceptual import weights

torch.set_num_threads(1)  # the models and pictures are so small that threads only cost

# `natural_32x`, narrow, of one block, and with k = 8.
SMALL = PRESETS["natural_32x"]() | {
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
        noisy = model.dit.patch_embed.weight[:, :192]  # what sees x_t begins at zero
        noisy.normal_(0, 0.05, generator=generator)
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


# What a process of its own sees: the code of this checkout.
SOURCES = {**os.environ, "PYTHONPATH": str(Path(regen.__file__).parents[1])}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`regen ARGUMENTS` in this process: (exit status, standard output, standard error)."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regen", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        return status, *capfd.readouterr()

    return run_main


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
    """A text encoder of 24 numbers a token, with random weights."""
    from small_generator import save_text_encoder

    return save_text_encoder(tmp_path_factory.mktemp("small_text"))


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of the loop are of very small models, see small_train."""
    from small_train import make_small

    make_small(monkeypatch)
    AcceleratorState._reset_state(reset_partial_state=True)  # another file's may be left
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and photos to train on; the folder `cache` beside has them decoded."""
    from test_training import write_data

    folder = tmp_path_factory.mktemp("training") / "data"
    write_data(folder)
    prepare_clips([folder], folder.parent / "cache")
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with another encoder."""
    folder = tmp_path_factory.mktemp("other_model")
    make_small_model(seed=1).save_pretrained(folder)
    return folder
