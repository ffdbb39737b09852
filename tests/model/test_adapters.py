"""Adapters: without effect when they are attached, alone in what learns, and one with their weights when merged."""

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

NEW = [9, 40, 11, 95]  # tokens of the vocabulary of `packs`, in no order
LORA_SETTINGS = {"rank": 3, "alpha": 6, "targets": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def net(request: pytest.FixtureRequest) -> AudioLM:
    torch.manual_seed(0)
    return nets.build(vocab=packs.VOCAB, tie_word_embeddings=request.param)


def batch(net: AudioLM) -> dict:
    rows = [[packs.text(5), packs.Clip(40), [9, 11, *packs.text(9), 95]], [packs.text(12), [40, 7]]]
    return packs.pack(rows, net.geometry)


def attach(net: AudioLM, *names: str) -> None:
    adapters.attach(net, names, token_ids=NEW, lora=LORA_SETTINGS)
    adapters.initialise(net, seed=3)
    optim.freeze(net, names)


def train(net: AudioLM, steps: int = 3, **settings: float) -> None:
    """AdamW with strong weight decay, which would move any row that it is given."""
    numbers = {"lr": 0.1, "weight_decay": 0.5, "layer_decay": 1.0} | settings
    adamw = torch.optim.AdamW(optim.parameter_groups(net, torch.nn.Identity(), **numbers))
    for _ in range(steps):
        loss, _ = NextToken()(net, batch(net))
        loss.backward()
        adamw.step()
        adamw.zero_grad()


def copied(net: AudioLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def merged(net: AudioLM, like: AudioLM) -> AudioLM:
    """A net without adapters that is loaded with the merged weights of one that has them."""
    plain = deepcopy(like)
    loading.load(plain, StateTensors(adapters.merge(net.state_dict(), LORA_SETTINGS)), layout="auris", label="merged")
    return plain


@pytest.mark.parametrize("names", [["llm.new_tokens"], ["llm.lora"], ["llm.new_tokens", "llm.lora"]])
def test_attached_adapters_change_nothing(net: AudioLM, names: list[str]):
    plain, pack = deepcopy(net), batch(net)
    attach(net, *names)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(pack), plain.logits(pack), rtol=1e-6, atol=1e-5)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, _ in net.named_parameters() if any(part in name for part in ("new_tokens", "lora_"))
    }


def test_without_a_name_in_trainable_there_are_no_adapters(net: AudioLM):
    before = set(net.state_dict())
    adapters.attach(net, ["encoder", "projector"], token_ids=NEW, lora=LORA_SETTINGS)
    assert set(net.state_dict()) == before


def test_rows_of_new_tokens_learn_and_all_others_stay_bit_identical(net: AudioLM):
    plain = deepcopy(net)
    before = copied(net)
    attach(net, "llm.new_tokens")
    train(net)
    after = copied(merged(net, plain))
    tables = {"llm.model.embed_tokens.weight", "llm.lm_head.weight"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == tables
    old = [token for token in range(packs.VOCAB) if token not in NEW]
    for table in tables:
        assert torch.equal(before[table][old], after[table][old])
        assert (before[table][NEW] != after[table][NEW]).any(dim=1).all()


@pytest.mark.parametrize("net", [True], indirect=True, ids=["tied"])
def test_a_checkpoint_that_holds_tied_tables_once_is_merged_as_the_whole_state(net: AudioLM):
    attach(net, "llm.new_tokens")
    train(net, lr=0.02)
    state = net.state_dict()
    once = {name: x for name, x in state.items() if name not in ("llm.lm_head.weight", "llm.new_tokens.head")}
    whole, found = adapters.merge(state), adapters.merge(once)
    assert found.keys() == whole.keys() - {"llm.lm_head.weight"}
    assert all(torch.equal(found[name], whole[name]) for name in found)


@pytest.mark.parametrize("names", [["llm.new_tokens"], ["llm.lora"], ["llm.new_tokens", "llm.lora"]])
def test_merged_weights_compute_the_same_as_the_adapters(net: AudioLM, names: list[str]):
    plain, pack = deepcopy(net), batch(net)
    attach(net, *names)
    train(net, lr=0.02)
    with torch.no_grad():
        trained = net.logits(pack)
        torch.testing.assert_close(merged(net, plain).logits(pack), trained, rtol=1e-5, atol=1e-4)
        assert (plain.logits(pack) - trained).abs().max() > 0.1


def test_gradients_of_new_rows_are_those_of_the_tables(net: AudioLM):
    plain, pack = deepcopy(net), batch(net)
    plain.requires_grad_(True)
    NextToken()(plain, pack)[0].backward()
    attach(net, "llm.new_tokens")
    NextToken()(net, pack)[0].backward()
    ends = (plain.llm.get_input_embeddings(), plain.llm.get_output_embeddings())
    for end, ours in zip(ends, (net.llm.new_tokens.embedding, net.llm.new_tokens.head), strict=True):
        torch.testing.assert_close(ours.grad, end.weight.grad[sorted(NEW)], rtol=1e-4, atol=1e-5)


def test_merging_equals_that_of_peft(net: AudioLM):
    attach(net, "llm.lora")
    train(net, lr=0.02)
    ours = adapters.merge(net.state_dict(), LORA_SETTINGS)
    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, LoraLayer)]
    assert len(layers) == len(LORA_SETTINGS["targets"]) * len(net.llm.model.layers)
    for name, module in layers:
        module.merge()
        torch.testing.assert_close(ours[f"{name}.weight"], module.base_layer.weight, rtol=0, atol=1e-6)


def test_lora_leaves_the_weights_below_it_alone_and_its_seed_is_its_own(net: AudioLM):
    before, other = copied(net), deepcopy(net)
    attach(net, "llm.lora")
    torch.manual_seed(99)
    attach(other, "llm.lora")
    first = {name: tensor for name, tensor in copied(net).items() if "lora_" in name}
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in first.items())
    train(net)
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in net.state_dict().items() if "lora_" not in name}
    assert kept.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], kept[name])] == []


def test_half_precision_stays_half_when_merged(net: AudioLM):
    plain = deepcopy(net).to(torch.bfloat16)
    net = deepcopy(plain)
    attach(net, "llm.new_tokens", "llm.lora")
    assert {name: t.dtype for name, t in adapters.merge(net.state_dict(), LORA_SETTINGS).items()} == {
        name: t.dtype for name, t in plain.state_dict().items()
    }


def test_a_state_without_adapters_is_merged_into_itself(net: AudioLM):
    state = net.state_dict()
    assert adapters.merge(state) == dict(state)


def test_answers_are_generated_with_the_adapters(net: AudioLM):
    """Decoding with a cache reads embeddings and head too."""
    plain, pack = deepcopy(net), batch(net)
    attach(net, "llm.new_tokens", "llm.lora")
    train(net, lr=0.02)
    settings = GenerationSettings(max_new_tokens=6, stop=frozenset({3}))
    answers = net.generate(pack, settings)
    assert answers == merged(net, plain).generate(pack, settings)
    assert answers != plain.generate(pack, settings)


def test_a_copy_of_a_net_has_adapters_of_its_own(net: AudioLM):
    """As a frozen reference model has."""
    pack = batch(net)
    attach(net, "llm.new_tokens", "llm.lora")
    copy = deepcopy(net)
    with torch.no_grad():
        before = copy.logits(pack)
        train_rows = net.llm.new_tokens.embedding.add_(1.0)
        assert torch.equal(copy.logits(pack), before)
        copy.llm.new_tokens.embedding.copy_(train_rows)
        assert not torch.equal(copy.logits(pack), before)


# --- what cannot be ---


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
        ({**LORA_SETTINGS, "rank": 0}, "lora.rank=0: expected 1 or more"),
    ],
)
def test_settings_of_lora_that_make_no_sense_are_named(net: AudioLM, settings: dict | None, message: str):
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
