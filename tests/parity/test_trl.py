"""DPO losses against TRL's DPOTrainer: same language model, same tokens, same losses.

`losses_of_trl` computed the numbers below with trl 1.16.0, transformers 5.23.0 and torch 2.11.0 on a CPU. If trl is
installed (it is not a dependency), a test computes them again. Weights are sines, so the numbers do not depend on a
random number generator.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from auris.data.collate import Sample, collate
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.training.objectives.dpo import DPO
from support.manifests import tokenizer

pytestmark = pytest.mark.usefixtures("float64")

VOCAB = 40
# A loss is a sum of at most 16 log-probabilities, which TRL rounds to float32. All are below 16 in absolute value,
# so rounding changes each by at most 2^-21.
ROUNDING = 16 * 2**-21
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
}
PAIRS = [
    {"prompt_ids": [3, 17, 22, 5], "chosen_ids": [9, 31, 2], "rejected_ids": [9, 4, 28, 11, 2]},
    {"prompt_ids": [8, 30], "chosen_ids": [14, 6, 25, 39, 2], "rejected_ids": [2]},
    {"prompt_ids": [1, 12, 12, 35, 7, 20, 33], "chosen_ids": [37, 10, 2], "rejected_ids": [21, 2]},
]

# name -> (arguments of our DPO, arguments of TRL's DPOConfig). TRL's `sigmoid` no longer supports label smoothing.
# Its `aot_unpaired` does, and is the same formula for a batch of one pair.
CASES = {
    "sigmoid": ({"beta": 0.1}, {"loss_type": ["sigmoid"], "beta": 0.1}),
    "sigmoid, larger beta": ({"beta": 0.7}, {"loss_type": ["sigmoid"], "beta": 0.7}),
    "label smoothing": (
        {"beta": 0.3, "label_smoothing": 0.2},
        {"loss_type": ["aot_unpaired"], "beta": 0.3, "label_smoothing": 0.2},
    ),
    "average": ({"beta": 0.3, "average": True}, {"loss_type": ["sigmoid_norm"], "beta": 0.3}),
    "ipo": ({"beta": 0.5, "loss": "ipo", "average": True}, {"loss_type": ["ipo"], "beta": 0.5}),
    "hinge": ({"beta": 0.2, "loss": "hinge"}, {"loss_type": ["hinge"], "beta": 0.2}),
    "with NLL": (
        {"beta": 0.1, "nll_weight": 0.6},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.6], "beta": 0.1},
    ),
}
LOSSES = {
    "sigmoid": [0.566640317440033, 0.541488528251648, 0.8762021064758301],
    "sigmoid, larger beta": [0.13944227993488312, 0.09432174265384674, 2.453974962234497],
    "label smoothing": [0.5295702219009399, 0.5138545036315918, 1.1202819347381592],
    "average": [0.5995492935180664, 0.5638828873634338, 0.896080493927002],
    "ipo": [0.11817648261785507, 0.005498853977769613, 5.010894298553467],
    "hinge": [0.4572647213935852, 0.3389964699745178, 1.6754581928253174],
    "with NLL": [2.9887938499450684, 2.989771842956543, 3.8712706565856934],
}


def fill(model: nn.Module, phase: float) -> None:
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            values = np.sin(0.7 * np.arange(parameter.numel()) ** 1.1 + number + phase)
            mean = 1.0 if "norm" in name else 0.0
            parameter.copy_(torch.from_numpy(mean + 0.4 * values).reshape(parameter.shape))


def causal_lm(phase: float) -> PreTrainedModel:
    config = AutoConfig.for_model(**QWEN2, vocab_size=VOCAB, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    fill(model, phase)
    return model


def losses_of_trl(settings: dict, folder: Path) -> list[float]:
    """Return the loss of each pair, computed in separate batches."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=causal_lm(0.0),
        ref_model=causal_lm(1.0),
        args=DPOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, **settings),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer().fast,
    )
    trainer.data_collator.pad_token_id = 0  # the pad id of the tokenizer is outside the model's vocabulary
    with torch.no_grad():
        return [float(trainer._compute_loss(trainer.model, trainer.data_collator([pair]), False)) for pair in PAIRS]


def build_net(phase: float) -> AudioLM:
    net = AudioLM(
        encoder=Encoder(n_mels=8, width=8, n_layers=1, n_heads=1, ffn=8),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, QWEN2),
        vocab_size=VOCAB,
    ).eval()
    fill(net.llm, phase)
    return net


def sample(number: int, pair: dict[str, list[int]]) -> Sample:
    ids = np.array([*pair["prompt_ids"], *pair["chosen_ids"]])
    return Sample(
        row=number,
        ids=ids,
        supervise=np.arange(len(ids)) >= len(pair["prompt_ids"]),
        audio_mask=np.zeros(len(ids), bool),
        mels=(),
        frames=(),
        audio_seconds=0.0,
        loss_curve="preference voice_chat",
        rejected=np.array(pair["rejected_ids"]),
    )


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_a_pair_equals_that_of_trl(case: str) -> None:
    objective = DPO(reference="live", **CASES[case][0])
    objective.set_live_reference(build_net(1.0))
    policy = build_net(0.0)
    packs = [collate([sample(number, pair)], geometry=policy.geometry) for number, pair in enumerate(PAIRS)]
    with torch.no_grad():
        losses = [float(objective(policy, pack)[0]) for pack in packs]
        batch = collate([sample(*entry) for entry in enumerate(PAIRS)], geometry=policy.geometry)
        summed = float(objective(policy, batch)[0])
    assert losses == pytest.approx(LOSSES[case], rel=0, abs=ROUNDING)
    assert summed == pytest.approx(sum(LOSSES[case]), rel=0, abs=len(PAIRS) * ROUNDING)
    assert len(set(np.round(losses, 3))) == len(PAIRS)  # the losses of the pairs differ clearly


@pytest.mark.parametrize("case", CASES)
def test_the_installed_trl_gives_the_recorded_losses(case: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs trl (with datasets and accelerate), which is not a dependency")
    assert losses_of_trl(CASES[case][1], tmp_path) == pytest.approx(LOSSES[case], rel=0, abs=ROUNDING)
