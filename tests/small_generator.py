"""A very small text encoder, transformer and pipeline with random weights, and a cache of noise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import make_small_model
from small_train import SMALL_TRANSFORMER
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from regen.model.autoencoder import AutoencoderREGEN
from regen.t2v.cache.latent_shards import clip_tensors, shard_path, write_dataset_file, write_shard
from regen.t2v.config import GeneratorConfig
from regen.t2v.pipeline import RegenTextToVideoPipeline, make_scheduler
from regen.t2v.text_encoder import TextEncoder
from regen.t2v.transformer import RegenTransformer3DModel

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "blue", "ball", "box", "rolls", "left"]


def make_text_encoder(seed: int = 0) -> TextEncoder:
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TextEncoder(BertModel(config), fast, "small", max_length=32)


def save_text_encoder(folder: Path) -> Path:
    encoder = make_text_encoder()
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


def make_transformer(seed: int = 0, **options: Any) -> RegenTransformer3DModel:
    """No layer left at zero."""
    torch.manual_seed(seed)
    settings = {"joint_attention_dim": 24, "sample_height": 4, "sample_width": 5}
    model = RegenTransformer3DModel(
        **(SMALL_TRANSFORMER | settings | {"sample_frames": 18} | options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return model.eval()


def make_pipeline() -> RegenTextToVideoPipeline:
    encoder = make_text_encoder()
    pipeline = RegenTextToVideoPipeline(
        make_small_model(), encoder.model, encoder.tokenizer, make_transformer(), make_scheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_cache(
    folder: Path, vae_folder: Path, text_folder: Path, num_clips: int = 24, size: int = 32
) -> Path:
    """Latents of one simple kind for each of two captions, so that there is something to learn."""
    folder.mkdir(parents=True)
    vae = AutoencoderREGEN.from_pretrained(vae_folder)
    encoder = TextEncoder.from_pretrained(str(text_folder))
    generator = torch.Generator().manual_seed(0)
    captions = ("a red ball rolls left", "a blue box")
    embeds = [encoder.encode([caption])[0][0] for caption in captions]
    clips = []
    for number in range(num_clips):
        is_photo = number % 6 == 5
        shape = (8, 1 if is_photo else 4, size // 8, size // 8)
        level = 1.0 if number % 2 else -1.0
        latents = level + 0.1 * torch.randn(shape, generator=generator)
        row = {
            "key": f"{number}",
            "caption": captions[number % 2],
            "source": f"{number}",
            "num_frames": 1 if is_photo else 18,
            "height": size,
            "width": size,
            "frame_rate": 24.0,
        }
        clips.append((row, clip_tensors(latents, embeds[number % 2], "bfloat16")))
    space = {
        "encoder_id": vae.encoder_id(),
        "text_encoder_id": encoder.encoder_id(),
        "storage": "bfloat16",
    }
    write_shard(shard_path(folder, 0), clips, [], space, "inputs")
    fields = {
        **space,
        "model": str(vae_folder),
        "temporal_compression_ratio": 8,
        "spatial_compression_ratio": 8,
        "text_encoder": str(text_folder),
        "text_dim": encoder.dim,
        "text_max_length": encoder.max_length,
        "latents_mean": [[0.25, -0.5]] * 8,
        "latents_std": [[0.75, 2.0]] * 8,
        "latents_count": [1000.0, 1000.0],
        "num_clips": num_clips,
        "shards": [{"file": shard_path(folder, 0).name, "num_clips": num_clips}],
    }
    write_dataset_file(folder, fields)
    return folder


def config_of(data: Path, output: Path, **options: Any) -> GeneratorConfig:
    """A run of seconds; the preset `test` is `SMALL_TRANSFORMER`."""
    config = GeneratorConfig(
        data=(str(data),),
        output=output,
        preset="test",
        steps=4,
        image_steps=1,
        image_batch_size=4,
        video_batch_size=2,
        warmup_steps=1,
        validate_every=100,
        checkpoint_every=100,
        validation_sources=2,
        num_inference_steps=2,
        num_workers=0,
        mixed_precision="no",
        tracker="none",
    )
    return replace(config, **options)
