"""What a model can do without audio: its loss on lines of text, its answers to questions, and both at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from auris import config
from auris.evaluation import runner
from auris.inference import load as pretrained
from auris.inference.start_reading import read_by_start
from auris.metrics.records import ResultRow
from auris.text.prompts import END_OF_TEXT
from auris.training import run as train
from auris.training.weight_settings import adopt_settings, find_sources
from support import published
from support.manifests import write_manifest
from support.recipes import smallest_run

LINES = ["the red boat sails", "a small bird sings in the green tree"]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that started from a text stage, which started from a published language model (`llm`)."""
    folder = tmp_path_factory.mktemp("language")
    published.language_model(folder / "llm")
    start = folder / "llm"
    for experiment in ("llm_text", "qwen2_audio_pretrain"):
        sizes = [override for override in smallest_run(corpus, folder) if not override.startswith("model.llm")]
        overrides = [f"experiment={experiment}", *sizes, "max_steps=2", "trainable=[llm]"]
        overrides += [f"weights.llm={start}", f"tokenizer={corpus}/tokenizer", "trainer.val_check_interval=2"]
        run_config = config.resolve(config.compose(overrides))
        start = train.train(adopt_settings(run_config, find_sources(run_config), overrides))
    return start


def evaluate(run: Path, *overrides: str) -> dict[tuple[str, str], ResultRow]:
    arguments = [f"checkpoint={run}", "accelerator=cpu", "bootstrap=10", "generation.max_new_tokens=4", *overrides]
    results = runner.evaluate(config.resolve(config.compose(arguments, "evaluate"), "evaluate"))
    return {(row.benchmark, row.metric): row for row in results}


@torch.no_grad()
def test_the_loss_on_text_is_that_of_transformers(trained: Path, tmp_path: Path):
    """It counts the end of each text. The first token has no prediction."""
    (tmp_path / "text.txt").write_text("".join(f"{line}\n" for line in LINES))
    model = pretrained.load(trained, device="cpu")
    reference = AutoModelForCausalLM.from_config(model.net.llm.config, attn_implementation="eager")
    reference.load_state_dict(model.net.llm.state_dict())
    losses, n_tokens = 0.0, 0
    for line in LINES:
        ids = torch.tensor([*model.tokenizer.encode_plain(line), model.tokenizer.id(END_OF_TEXT)])
        logps = reference(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        losses -= logps.gather(-1, ids[1:, None]).sum().item()
        n_tokens += len(ids) - 1
    row = evaluate(trained, f"data.test=[{tmp_path}/text.txt]")["embedded", "text_loss"]
    assert row.value == pytest.approx(losses / n_tokens, rel=1e-4)
    assert (row.task, row.n) == ("text", len(LINES))


def test_the_start_reading_has_the_published_language_model(trained: Path):
    own, start = pretrained.load(trained, device="cpu"), read_by_start(pretrained.load(trained, device="cpu"))
    stored = load_file(trained.parents[3] / "llm/model.safetensors")["model.embed_tokens.weight"]
    table = start.net.llm.get_input_embeddings().weight
    assert torch.equal(table[: len(stored)], stored)
    assert not torch.equal(table, own.net.llm.get_input_embeddings().weight)
    assert torch.equal(start.net.projector.weight, own.net.projector.weight)


def test_questions_and_text_have_scores_before_and_after(trained: Path, tmp_path: Path):
    question = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "red"}]
    questions = write_manifest(tmp_path / "questions.jsonl", [{"id": "colour", "messages": question}])
    (tmp_path / "text.txt").write_text("".join(f"{line}\n" for line in LINES))
    test = f"data.test=[{questions},{tmp_path}/text.txt]"
    before, after = evaluate(trained, test, "reading=start"), evaluate(trained, test)
    assert {name for name, _ in before} == {"embedded@start"}
    assert {metric for _, metric in after} == {"contains", "text_loss"}
    loss = "text_loss"
    assert before["embedded@start", loss].value != after["embedded", loss].value
    predictions = (trained / "predictions/embedded@start.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in predictions} >= {"colour"}


def test_a_model_from_random_weights_has_no_start(corpus: Path, tmp_path: Path):
    published.run(tmp_path / "run")
    with pytest.raises(ValueError, match="trained from random weights, expected a run that started from a published"):
        read_by_start(pretrained.load(tmp_path / "run", device="cpu"))
