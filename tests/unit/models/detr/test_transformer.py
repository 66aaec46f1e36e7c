from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from construction_panoptic.config.model import DetrSettings
from construction_panoptic.models.detr.boxes import Anchors, BoxHead
from construction_panoptic.models.detr.transformer import DecoderLayer, EncoderLayer, Transformer

DIM, HEADS, FEEDFORWARD = 32, 4, 48


def build(**changes: Any) -> Transformer:
    return Transformer(
        DetrSettings(**{"hidden_dim": DIM, "num_heads": HEADS, "feedforward_dim": FEEDFORWARD, **changes})
    )


def load_same(ours: nn.Module, theirs: nn.Module, randomise: Callable[[nn.Module], None]) -> None:
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.eval()
    theirs.eval()


def padding(batch: int = 3, cells: int = 10) -> Tensor:
    mask = torch.zeros(batch, cells, dtype=torch.bool)
    mask[1, 6:] = True
    mask[2, 1:] = True
    return mask


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_equals_torchs(pre_norm: bool, randomise_model: Callable[[nn.Module], None]) -> None:
    """torch's layer knows no position embedding, so it is compared with positions of zero."""
    ours = EncoderLayer(DIM, HEADS, FEEDFORWARD, 0.1, pre_norm)
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, FEEDFORWARD, batch_first=True, norm_first=pre_norm)
    load_same(ours, theirs, randomise_model)
    x, mask = torch.randn(3, 10, DIM), padding()

    out = ours(x, torch.zeros(1, 1, DIM), mask)

    expected = theirs(x, src_key_padding_mask=mask)
    torch.testing.assert_close(out[~mask], expected[~mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_equals_torchs(pre_norm: bool, randomise_model: Callable[[nn.Module], None]) -> None:
    ours = DecoderLayer(DIM, HEADS, FEEDFORWARD, 0.1, pre_norm)
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, FEEDFORWARD, batch_first=True, norm_first=pre_norm)
    load_same(ours, theirs, randomise_model)
    queries, memory, mask = torch.randn(3, 7, DIM), torch.randn(3, 10, DIM), padding()

    out = ours(queries, torch.zeros(7, DIM), memory, memory, mask)

    expected = theirs(queries, memory, memory_key_padding_mask=mask)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def literal_pre_norm_decoder_layer(
    layer: DecoderLayer, x: Tensor, query_position: Tensor, memory: Tensor, position: Tensor
) -> Tensor:
    """The paper's layer with normalisation first, step by step, positions added to queries and keys alone."""

    def attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)[0]

    normed = layer.norm1(x)
    x = x + attend(layer.self_attn, normed + query_position, normed + query_position, normed)
    normed = layer.norm2(x)
    x = x + attend(layer.multihead_attn, normed + query_position, memory + position, memory)
    return x + layer.linear2(layer.linear1(layer.norm3(x)).relu())


def test_positions_are_added_to_queries_and_keys_alone(randomise_model: Callable[[nn.Module], None]) -> None:
    transformer = build(encoder_layers=0, decoder_layers=2, pre_norm=True).eval()
    randomise_model(transformer)
    features, position = torch.randn(2, 3, DIM, 2, 5)
    query_position = torch.randn(7, DIM)

    decoded, _, memory = transformer(features, None, query_position, position, all_layers=True)

    expected_memory = transformer.encoder.norm(features.flatten(2).transpose(1, 2))
    torch.testing.assert_close(memory.flatten(2).transpose(1, 2), expected_memory)
    cells = position.flatten(2).transpose(1, 2)
    x = torch.zeros(3, 7, DIM)
    for depth, layer in enumerate(transformer.decoder.layers):
        assert isinstance(layer, DecoderLayer)
        x = literal_pre_norm_decoder_layer(layer, x, query_position, expected_memory, cells)
        expected = transformer.decoder.norm(x)
        torch.testing.assert_close(decoded[depth], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("anchored", [False, True])
def test_padding_does_not_reach_the_queries(anchored: bool) -> None:
    anchors = (Anchors(7, DIM, HEADS, layers=2), BoxHead(DIM)) if anchored else None
    transformer = build(encoder_layers=2, decoder_layers=2).eval()
    features, position = torch.randn(2, 3, DIM, 2, 5)
    mask = padding().view(3, 2, 5)
    noisy = torch.where(mask[:, None], 100.0, features)
    queries = torch.randn(7, DIM)

    decoded, _, _ = transformer(features, mask, queries, position, anchors=anchors)
    decoded_noisy, _, _ = transformer(noisy, mask, queries, position, anchors=anchors)

    torch.testing.assert_close(decoded, decoded_noisy, rtol=1e-5, atol=1e-5)


def test_last_layer_is_the_same_with_and_without_the_others() -> None:
    transformer = build(encoder_layers=1, decoder_layers=3).eval()
    features, position = torch.randn(2, 1, DIM, 2, 5)
    queries = torch.randn(7, DIM)

    all_layers, _, _ = transformer(features, None, queries, position, all_layers=True)
    last, _, _ = transformer(features, None, queries, position)

    assert all_layers.shape == (3, 1, 7, DIM)
    assert torch.equal(last[0], all_layers[-1])


def test_dropout_acts_in_training_alone() -> None:
    transformer = build(encoder_layers=1, decoder_layers=1, dropout=0.5)
    features, position = torch.randn(2, 1, DIM, 2, 5)
    queries = torch.randn(7, DIM)

    def run() -> Tensor:
        return transformer(features, None, queries, position)[0]

    assert not torch.equal(run(), run())
    transformer.eval()
    assert torch.equal(run(), run())


def test_weights_start_as_in_the_paper() -> None:
    """Matrices are Glorot-uniform over their packed shape; the attention's biases start at zero."""
    torch.manual_seed(0)
    transformer = build(hidden_dim=64, encoder_layers=1, decoder_layers=1, feedforward_dim=256)
    for name, parameter in transformer.named_parameters():
        if parameter.dim() == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.98 * bound < parameter.abs().max() <= bound, name
        elif "attn" in name:
            assert not parameter.any(), name
