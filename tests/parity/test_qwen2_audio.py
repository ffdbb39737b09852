"""Our packed AudioLM against transformers' padded Qwen2AudioForConditionalGeneration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2AudioForConditionalGeneration

from auris.model.audio_lm import AudioLM
from auris.model.pack import IGNORE
from auris.model.weights.layouts import LAYOUTS
from support.packs import Row, pack
from support.twins import BATCHES, build, processor_output

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def models() -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    return build()


@pytest.fixture(params=BATCHES)
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return BATCHES[request.param]


def padded_labels(batch: dict, like: torch.Tensor) -> torch.Tensor:
    """Convert our shifted, packed labels to transformers' unshifted, padded labels."""
    labels = torch.full_like(like, IGNORE)
    for row, part in zip(labels, batch["labels"].split(batch["cu_seqlens"].diff().tolist()), strict=True):
        row[1 : len(part)] = part[:-1]
    return labels


@torch.no_grad()
def test_logits_equal_those_of_transformers_at_every_valid_position(models: tuple, rows: list[Row]) -> None:
    net, reference = models
    inputs = processor_output(rows, net, "right")
    expected = reference(**inputs).logits[inputs["attention_mask"].bool()]
    torch.testing.assert_close(net.logits(pack(rows, net.geometry)), expected, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_equal_those_of_transformers(models: tuple, rows: list[Row]) -> None:
    net, reference = models
    net.zero_grad()
    reference.zero_grad()
    batch = pack(rows, net.geometry)
    has_label = batch["labels"] != IGNORE
    loss = F.cross_entropy(net.head(net(batch)[has_label]), batch["labels"][has_label])
    inputs = processor_output(rows, net, "right")
    expected = reference(**inputs, labels=padded_labels(batch, inputs["input_ids"])).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)

    loss.backward()
    expected.backward()
    layout = LAYOUTS["qwen2_audio"]
    expected_grads = {
        layout.model_names(name)[0]: p.grad for name, p in reference.named_parameters() if p.requires_grad
    }
    assert expected_grads.keys() == dict(net.named_parameters()).keys()
    for name, parameter in net.named_parameters():
        error = (parameter.grad - expected_grads[name]).norm() / expected_grads[name].norm()
        assert expected_grads[name].any() and error <= 1e-4, (name, error)
