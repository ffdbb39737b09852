"""Fine-tuning on dialogues at the smallest size: trained and frozen parameters, evaluation, and adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from auris import config
from auris.evaluation import runner
from auris.inference import export
from auris.inference import load as pretrained
from auris.metrics.measures import find_measure
from auris.model.adapters import LORA, NEW_TOKENS
from auris.text.chat import Qwen2AudioChat, QwenAudioChat
from auris.training import run as train
from auris.training.preemption import Preemption
from support.recipes import SMALLEST_MODEL
from support.runs import ROOT, KillAt, Killed, load_state

SYSTEMS = {"qwen_audio": QwenAudioChat, "qwen2_audio": Qwen2AudioChat}


@pytest.fixture(scope="module")
def dialogues(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write dialogues with audio and text, audio only and text only, and one invalid row."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    dialogues = []
    for number, row in enumerate(row for row in rows if row["task"] in ("sec", "mic", "ks")):
        clip = {"type": "audio", "audio": str(corpus / row["audio"])}
        content = [[clip, {"type": "text", "text": "what is it?"}], [clip], "say a word"][number % 3]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"it is {row['text']}"}]
        labels = {"key": row["text"], "provenance": "procedural", "written_by": "a script of templates"}
        dialogues.append({"id": f"d{number}", "messages": messages, **labels})
    dialogues.append(
        {"id": "bad", "messages": [{"role": "user", "content": "<audio>what?"}, dialogues[0]["messages"][1]]}
    )
    path = tmp_path_factory.mktemp("dialogues") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in dialogues))
    return path


@pytest.fixture
def compose_run(corpus: Path, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a config small enough for a test, with dialogues if it fine-tunes."""
    monkeypatch.chdir(ROOT)
    size = [
        f"runs_dir={tmp_path}/runs",
        f"data.root={corpus}",
        f"data.cache_dir={tmp_path}/cache",
        "data.rows_per_step=6",
        *SMALLEST_MODEL,
        "optim.warmup_steps=1",
        "trainer.accelerator=cpu",
        "max_new_tokens=4",
        "max_steps=3",
        "trainer.enable_progress_bar=false",
        "trainer.val_check_interval=1.0",
    ]

    def compose(*overrides: str) -> dict:
        chat_data = [f"data.train=[{dialogues}]", f"data.valid=[{{path: '{dialogues}', limit: 3}}]"]
        audio_data = [f"data.valid=[{{path: '{corpus}/valid.jsonl', tasks: [ks], limit: 2}}]"]
        is_chat = any("_sft" in override for override in overrides)
        return config.resolve(config.compose([*size, *(chat_data if is_chat else audio_data), *overrides]))

    return compose


def weights_of(path: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_state(path).items() if name.startswith("net.")}


@pytest.mark.parametrize("system", [pytest.param("qwen_audio", marks=pytest.mark.slow), "qwen2_audio"])
def test_a_pretrained_model_is_fine_tuned_evaluated_and_prompted(compose_run, dialogues: Path, system: str, capsys):
    base = compose_run(f"experiment={system}_pretrain", "arm=base")
    train.train(base)
    run_config = compose_run(f"experiment={system}_sft", f"checkpoint={base['run_dir']}")
    train.train(run_config)
    before, after = weights_of(base["run_dir"]), weights_of(run_config["run_dir"])
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("net.encoder."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("net.llm."))
    unusable = (Path(run_config["run_dir"]) / "unusable_rows.jsonl").read_text()
    assert '"bad"' in unusable and "the user's messages have 1 audio mark" in unusable

    model = pretrained.load(run_config["run_dir"])
    assert model.is_chat and type(model.dialogue) is SYSTEMS[system]
    assert not pretrained.load(base["run_dir"]).is_chat
    assert isinstance(model.chat([{"role": "user", "content": "what is it?"}], max_new_tokens=3), str)

    options = [
        f"checkpoint={run_config['run_dir']}",
        "data=manifest",
        f"data.test=[{dialogues}]",
        "judge=rule",
        "generation.max_new_tokens=3",
    ]
    evaluation = config.resolve(config.compose([*options, "accelerator=cpu"], "evaluate"))
    evaluation["benchmark"]["test"] = [dialogues]
    capsys.readouterr()
    rows = runner.evaluate(evaluation)
    output = capsys.readouterr().out
    n_rows = len(dialogues.read_text().splitlines()) - 1
    assert f"written by: a script of templates ({n_rows} rows)" in output and "judged: judged|1-9|stand-in" in output
    assert {row.task for row in rows} == {"chat audio_analysis", "chat voice_chat", "chat text"}
    assert {row.metric for row in rows} == {"contains", "judged"} and find_measure("contains").higher_is_better
    assert sum(row.n for row in rows if row.metric == "contains") == n_rows


def test_generation_stops_at_the_end_of_the_assistant_message(compose_run):
    run_config = compose_run("experiment=qwen2_audio_sft")
    train.train(run_config)
    model = pretrained.load(run_config["run_dir"])
    end = model.tokenizer.id("<|im_end|>")
    assert end in model.settings(chat=True).stop


@pytest.mark.slow
def test_a_run_with_adapters_resumes_and_is_loaded_with_merged_weights(compose_run, tmp_path: Path):
    base = compose_run("experiment=qwen2_audio_pretrain", "arm=base")
    train.train(base)
    options = [
        "experiment=qwen2_audio_sft",
        f"checkpoint={base['run_dir']}",
        f"trainable=[projector,{NEW_TOKENS},{LORA}]",
        "lora.rank=2",
        "optim.lr=0.01",
        "max_steps=4",
    ]
    uninterrupted, resumed = (
        compose_run(*options, "arm=whole"),
        compose_run(*options, "arm=halves", "checkpoint_every=2"),
    )
    train.train(uninterrupted)
    train.claim_run_dir(Path(resumed["run_dir"]), resumed)
    module, data = train.build(resumed)
    trainer = train.build_trainer(resumed, Path(resumed["run_dir"]), Preemption(), module.net)
    trainer.callbacks.append(KillAt(3))
    with pytest.raises(Killed):
        trainer.fit(module, data)
    train.train(resumed)
    expected, actual = weights_of(uninterrupted["run_dir"]), weights_of(resumed["run_dir"])
    assert expected.keys() == actual.keys() and all(torch.equal(expected[name], actual[name]) for name in expected)

    base_weights, model = weights_of(base["run_dir"]), pretrained.load(uninterrupted["run_dir"])
    merged = {f"net.{name}": tensor for name, tensor in model.net.state_dict().items()}
    assert merged.keys() == base_weights.keys()
    changed = {name for name in base_weights if not torch.equal(base_weights[name], merged[name])}
    tables = {"net.llm.model.embed_tokens.weight", "net.llm.lm_head.weight"}
    projector = {"net.projector.weight", "net.projector.bias"}
    layers = {
        name
        for name in base_weights
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"))
    }
    assert changed == projector | tables | layers
    text_ids = sorted(set(range(model.tokenizer.size)) - set(model.tokenizer.added_ids))
    assert all(torch.equal(base_weights[table][text_ids], merged[table][text_ids]) for table in tables)

    export.export(uninterrupted["run_dir"], tmp_path / "exported", format="auris")
    exported = pretrained.load(tmp_path / "exported")
    assert exported.is_chat and all(
        torch.equal(x, exported.net.state_dict()[name]) for name, x in model.net.state_dict().items()
    )
