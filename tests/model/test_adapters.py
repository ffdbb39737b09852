"""Adapters (LoRA and rows of new tokens): without effect when attached, trained alone, and merged exactly."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from auris.model import adapters
from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings
from auris.model.weights import loading
from auris.model.weights.tensors import StateTensors
from auris.training import optim
from auris.training.objectives.next_token import NextToken
from support import nets, packs

pytestmark = pytest.mark.usefixtures("float64")

NEW_IDS = [9, 40, 11, 95]  # token ids in the vocabulary of `packs`, not sorted
LORA_SETTINGS = {"rank": 3, "alpha": 6, "targets": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def net(request: pytest.FixtureRequest) -> AudioLM:
    torch.manual_seed(0)
    return nets.build(vocab=packs.VOCAB, tie_word_embeddings=request.param)


def batch(net: AudioLM) -> dict:
    rows = [[packs.text(5), packs.Clip(40), [9, 11, *packs.text(9), 95]], [packs.text(12), [40, 7]]]
    return packs.pack(rows, net.geometry)


def attach(net: AudioLM, *names: str) -> None:
    adapters.attach(net, names, token_ids=NEW_IDS, lora=LORA_SETTINGS)
    adapters.initialise(net, seed=3)
    optim.freeze(net, names)


def train(net: AudioLM, steps: int = 3, **settings: float) -> None:
    """Train with AdamW. The strong weight decay would move every row that the optimizer receives."""
    numbers = {"lr": 0.1, "weight_decay": 0.5, "layer_decay": 1.0} | settings
    adamw = torch.optim.AdamW(optim.parameter_groups(net, torch.nn.Identity(), **numbers))
    for _ in range(steps):
        loss, _ = NextToken()(net, batch(net))
        loss.backward()
        adamw.step()
        adamw.zero_grad()


def clone_state(net: AudioLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def build_merged(net: AudioLM, template: AudioLM) -> AudioLM:
    """Return a net without adapters that holds the merged weights of `net`."""
    plain = deepcopy(template)
    loading.load(plain, StateTensors(adapters.merge(net.state_dict(), LORA_SETTINGS)), layout="auris", label="merged")
    return plain


@pytest.mark.parametrize("names", [["llm.new_tokens"], ["llm.lora"], ["llm.new_tokens", "llm.lora"]])
def test_attaching_adapters_does_not_change_the_logits(net: AudioLM, names: list[str]):
    plain, pack = deepcopy(net), batch(net)
    attach(net, *names)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(pack), plain.logits(pack), rtol=1e-6, atol=1e-5)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, _ in net.named_parameters() if any(part in name for part in ("new_tokens", "lora_"))
    }


def test_adapters_are_attached_only_if_the_setting_trainable_names_them(net: AudioLM):
    before = set(net.state_dict())
    adapters.attach(net, ["encoder", "projector"], token_ids=NEW_IDS, lora=LORA_SETTINGS)
    assert set(net.state_dict()) == before


def test_only_the_rows_of_new_tokens_change_in_training(net: AudioLM):
    plain = deepcopy(net)
    before = clone_state(net)
    attach(net, "llm.new_tokens")
    train(net)
    after = clone_state(build_merged(net, plain))
    tables = {"llm.model.embed_tokens.weight", "llm.lm_head.weight"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == tables
    old = [token for token in range(packs.VOCAB) if token not in NEW_IDS]
    for table in tables:
        assert torch.equal(before[table][old], after[table][old])
        assert (before[table][NEW_IDS] != after[table][NEW_IDS]).any(dim=1).all()


@pytest.mark.parametrize("net", [True], indirect=True, ids=["tied"])
def test_merging_accepts_a_checkpoint_that_stores_tied_tables_once(net: AudioLM):
    attach(net, "llm.new_tokens")
    train(net, lr=0.02)
    state = net.state_dict()
    deduplicated = {name: x for name, x in state.items() if name not in ("llm.lm_head.weight", "llm.new_tokens.head")}
    expected, actual = adapters.merge(state), adapters.merge(deduplicated)
    assert actual.keys() == expected.keys() - {"llm.lm_head.weight"}
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


@pytest.mark.parametrize("names", [["llm.new_tokens"], ["llm.lora"], ["llm.new_tokens", "llm.lora"]])
def test_a_net_with_merged_weights_computes_the_same_as_one_with_adapters(net: AudioLM, names: list[str]):
    plain, pack = deepcopy(net), batch(net)
    attach(net, *names)
    train(net, lr=0.02)
    with torch.no_grad():
        trained = net.logits(pack)
        torch.testing.assert_close(build_merged(net, plain).logits(pack), trained, rtol=1e-5, atol=1e-4)
        assert (plain.logits(pack) - trained).abs().max() > 0.1


def test_gradients_of_new_rows_equal_those_of_the_full_tables(net: AudioLM):
    plain, pack = deepcopy(net), batch(net)
    plain.requires_grad_(True)
    NextToken()(plain, pack)[0].backward()
    attach(net, "llm.new_tokens")
    NextToken()(net, pack)[0].backward()
    tables = (plain.llm.get_input_embeddings(), plain.llm.get_output_embeddings())
    for table, rows in zip(tables, (net.llm.new_tokens.embedding, net.llm.new_tokens.head), strict=True):
        torch.testing.assert_close(rows.grad, table.weight.grad[sorted(NEW_IDS)], rtol=1e-4, atol=1e-5)


def test_merging_equals_peft(net: AudioLM):
    attach(net, "llm.lora")
    train(net, lr=0.02)
    merged = adapters.merge(net.state_dict(), LORA_SETTINGS)
    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, LoraLayer)]
    assert len(layers) == len(LORA_SETTINGS["targets"]) * len(net.llm.model.layers)
    for name, module in layers:
        module.merge()
        torch.testing.assert_close(merged[f"{name}.weight"], module.base_layer.weight, rtol=0, atol=1e-6)


def test_lora_does_not_change_base_weights_and_depends_only_on_its_own_seed(net: AudioLM):
    before, other = clone_state(net), deepcopy(net)
    attach(net, "llm.lora")
    torch.manual_seed(99)
    attach(other, "llm.lora")
    lora_weights = {name: tensor for name, tensor in clone_state(net).items() if "lora_" in name}
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in lora_weights.items())
    train(net)
    base_weights = {
        name.replace(".base_layer", ""): tensor for name, tensor in net.state_dict().items() if "lora_" not in name
    }
    assert base_weights.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], base_weights[name])] == []


def test_merging_keeps_the_dtype(net: AudioLM):
    plain = deepcopy(net).to(torch.bfloat16)
    net = deepcopy(plain)
    attach(net, "llm.new_tokens", "llm.lora")
    assert {name: t.dtype for name, t in adapters.merge(net.state_dict(), LORA_SETTINGS).items()} == {
        name: t.dtype for name, t in plain.state_dict().items()
    }


def test_merging_does_not_change_a_state_without_adapters(net: AudioLM):
    state = net.state_dict()
    assert adapters.merge(state) == dict(state)


def test_answers_are_generated_with_the_adapters(net: AudioLM):
    """Decoding with a cache also reads the embeddings and the head."""
    plain, pack = deepcopy(net), batch(net)
    attach(net, "llm.new_tokens", "llm.lora")
    train(net, lr=0.02)
    settings = GenerationSettings(max_new_tokens=6, stop=frozenset({3}))
    answers = net.generate(pack, settings)
    assert answers == build_merged(net, plain).generate(pack, settings)
    assert answers != plain.generate(pack, settings)


def test_a_copied_net_has_separate_adapters(net: AudioLM):
    """DPO uses such a copy as its frozen reference model."""
    pack = batch(net)
    attach(net, "llm.new_tokens", "llm.lora")
    copy = deepcopy(net)
    with torch.no_grad():
        before = copy.logits(pack)
        new_rows = net.llm.new_tokens.embedding.add_(1.0)
        assert torch.equal(copy.logits(pack), before)
        copy.llm.new_tokens.embedding.copy_(new_rows)
        assert not torch.equal(copy.logits(pack), before)


# --- invalid settings ---


@pytest.mark.parametrize("name", ["llm.new_tokens", "llm.lora"])
def test_adapters_next_to_a_trainable_llm_are_refused(net: AudioLM, name: str):
    with pytest.raises(ValueError, match=f"trainable names llm and {name}: expected only one of them"):
        attach(net, "llm", name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "requires settings: for example lora.rank=8"),
        (
            {**LORA_SETTINGS, "targets": ["q_prj"]},
            r"lora.targets=\['q_prj'\]: expected one or more of down_proj, gate_proj",
        ),
        ({**LORA_SETTINGS, "targets": []}, r"lora.targets=\[\]"),
        ({**LORA_SETTINGS, "targets": ["lm_head"]}, r"lora.targets=\['lm_head'\]"),
    ],
)
def test_invalid_lora_settings_are_named(net: AudioLM, settings: dict | None, message: str):
    with pytest.raises(ValueError, match=message):
        adapters.attach(net, ["llm.lora"], lora=settings)


def test_a_model_with_unsupported_embedding_tables_is_named(net: AudioLM):
    class Scaled(torch.nn.Embedding):
        pass

    net.llm.set_input_embeddings(Scaled(packs.VOCAB, 32))
    with pytest.raises(ValueError, match="the LLM's embedding is a Scaled, expected a plain Embedding"):
        attach(net, "llm.new_tokens")


def test_a_vocabulary_without_new_tokens_is_an_error(net: AudioLM):
    with pytest.raises(ValueError, match="the tokenizer has no audio or tag tokens"):
        adapters.attach(net, ["llm.new_tokens"])
