"""Loading weights into nets: all or nothing, slice by slice, and precise messages about wrong files."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from auris.model import adapters
from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings
from auris.model.weights import loading, tensors
from auris.model.weights.identify import identify
from auris.model.weights.saving import export_tensors, write_sharded
from auris.model.weights.tensors import StateTensors, TensorFiles
from auris.text.tokenizer import Tokenizer
from auris.training import sharding
from support import nets, packs
from support.runs import in_processes, read_logs

pytestmark = pytest.mark.usefixtures("single_thread")

MAPS = Path("/proc/self/maps")
PARAGRAPH = (
    "Fires were lit on hilltops so that sailors could find the harbour at night, and later towers were built to lift "
    "the flame above the waves. In 1822 the French physicist Augustin Fresnel invented a lens that could throw a beam "
    "of light more than twenty miles out to sea."
)


@pytest.fixture
def source_net() -> AudioLM:
    torch.manual_seed(0)
    return nets.build()


@pytest.fixture
def net() -> AudioLM:
    torch.manual_seed(1)
    return nets.build()


def clone_state(net: AudioLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_equal(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(state[name], expected[name])]
    assert different == []


def write(out: Path, state: Mapping[str, Tensor], n_shards: int = 1) -> Path:
    """Write a state to about `n_shards` files."""
    size = sum(tensor.nbytes for tensor in state.values())
    write_sharded(state.items(), out, max_shard_bytes=1 + size // n_shards)
    return out


# --- loading ------------------------------------------------------------------------------------------------------


def test_a_net_is_loaded_from_one_file_and_from_shards(net: AudioLM, source_net: AudioLM, tmp_path: Path):
    for n_shards in (1, 4):
        out = write(tmp_path / str(n_shards), source_net.state_dict(), n_shards)
        assert len(list(out.glob("*.safetensors"))) == n_shards
        loading.load(net, TensorFiles.open(out), layout="auris", label=str(out))
        assert_equal(net.state_dict(), source_net.state_dict())


def test_loading_some_parts_of_a_run_leaves_other_parts_unchanged(net: AudioLM, source_net: AudioLM):
    state = {f"net.{name}": tensor for name, tensor in source_net.state_dict().items()}
    source = StateTensors({**state, "objective.head.weight": torch.zeros(2, 2)})
    before = clone_state(net)
    loading.load(net, source, layout="auris", parts=["encoder", "projector"], label="runs/a")
    loaded = {name for name in before if name.startswith(("encoder.", "projector."))}
    assert_equal(
        net.state_dict(), {name: (source_net.state_dict() if name in loaded else before)[name] for name in before}
    )


def test_loaded_weights_are_cast_to_the_dtype_of_the_parameters(net: AudioLM, source_net: AudioLM):
    half = source_net.to(torch.bfloat16).state_dict()
    loading.load(net, StateTensors(half), layout="auris", label="half")
    assert_equal(net.state_dict(), {name: tensor.float() for name, tensor in half.items()})
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}


def test_fused_attention_tensors_are_split_by_rows():
    """The sizes of queries, keys and values come from the net and may differ."""
    torch.manual_seed(1)
    net = nets.build(num_key_value_heads=2)
    attention = net.llm.model.layers[1].self_attn
    released = dict(export_tensors(nets.build(num_key_value_heads=2).llm.state_dict(prefix="llm."), "qwen_audio"))
    fused = released["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (32 + 16 + 16, 32)
    loading.load(net, StateTensors(released), layout="qwen_audio", parts=["llm"], label="qwen")
    for part, rows in (("q_proj", slice(0, 32)), ("k_proj", slice(32, 48)), ("v_proj", slice(48, 64))):
        assert torch.equal(getattr(attention, part).weight, fused[rows])


def test_one_name_of_tied_tensors_suffices_and_tensors_of_both_names_must_agree():
    torch.manual_seed(0)
    source, net = nets.build(tie_word_embeddings=True), nets.build(tie_word_embeddings=True)
    both = source.state_dict()
    assert torch.equal(both["llm.lm_head.weight"], both["llm.model.embed_tokens.weight"])
    for omitted in ("llm.lm_head.weight", "llm.model.embed_tokens.weight", None):
        torch.nn.init.zeros_(net.llm.lm_head.weight)
        state = {n: t for n, t in both.items() if n != omitted}
        loading.load(net, StateTensors(state), layout="auris", label="tied")
        assert_equal(net.state_dict(), both)
    neither = {n: t for n, t in both.items() if n not in ("llm.lm_head.weight", "llm.model.embed_tokens.weight")}
    with pytest.raises(ValueError, match=r"does not fit the model: llm.model.embed_tokens.weight is missing$"):
        loading.load(net, StateTensors(neither), layout="auris", label="tied")
    both["llm.lm_head.weight"] = both["llm.lm_head.weight"] + 1
    with pytest.raises(
        ValueError, match=r"llm.lm_head.weight differs from llm.model.embed_tokens.weight, but the model ties them$"
    ):
        loading.load(net, StateTensors(both), layout="auris", label="tied")


# --- no partial load ----------------------------------------------------------------------------------------------


def load_error(net: AudioLM, state: Mapping[str, Tensor], layout: str = "auris", **options: object) -> str:
    """Return the message of a refused load, and check that the net is unchanged."""
    before = clone_state(net)
    with pytest.raises(ValueError, match="weights.encoder=runs/a") as error:
        loading.load(net, StateTensors(state), layout=layout, label="weights.encoder=runs/a", **options)
    assert_equal(net.state_dict(), before)
    return str(error.value)


def test_a_shape_mismatch_names_both_shapes(net: AudioLM, source_net: AudioLM):
    state = source_net.state_dict()
    state["encoder.conv1.weight"] = torch.zeros(24, 80, 3)
    message = (
        "weights.encoder=runs/a (auris layout) does not fit the model: encoder.conv1.weight has shape (24, 80, 3), "
    )
    assert load_error(net, state) == message + "expected (24, 16, 3)"


def test_missing_and_unexpected_tensors_are_named(net: AudioLM, source_net: AudioLM):
    state = source_net.state_dict()
    del state["projector.bias"]
    state["projector.gate.weight"] = torch.zeros(1)
    end = "projector.bias is missing; projector.gate.weight is unexpected"
    assert load_error(net, state).endswith(end)
    assert load_error(net, state, parts=["projector"]).endswith(end)
    loading.load(net, StateTensors(state), layout="auris", parts=["llm"], label="another part")


def test_tensors_with_names_unknown_to_the_layout_are_reported_for_every_part(net: AudioLM, source_net: AudioLM):
    state = dict(export_tensors(source_net.state_dict(), "qwen2_audio"))
    state["audio_tower.conv3.weight"] = torch.zeros(1)
    message = load_error(net, state, "qwen2_audio", parts=["llm"])
    assert "(qwen2_audio layout)" in message and message.endswith("model: audio_tower.conv3.weight is unexpected")


def test_extra_layers_are_reported_as_unexpected(net: AudioLM):
    deeper = dict(export_tensors(nets.build(layers=3).state_dict(), "qwen2_audio"))
    message = load_error(net, deeper, "qwen2_audio", parts=["encoder"])
    assert "audio_tower.layers.2.self_attn.q_proj.weight is unexpected" in message and message.endswith("; and 10 more")


def test_five_mismatches_are_listed_and_the_others_counted(net: AudioLM):
    message = load_error(net, nets.build(layers=1).state_dict(), parts=["encoder"])
    assert message.endswith("; and 10 more") and message.count("is missing") == 5


def test_mismatches_are_reported_for_nets_on_the_meta_device(source_net: AudioLM):
    state = dict(export_tensors(source_net.state_dict(), "qwen2_audio"))
    assert loading.find_mismatches(nets.build_meta(), StateTensors(state), "qwen2_audio", label="here") == []
    del state["audio_tower.conv1.bias"]
    mismatches = loading.find_mismatches(nets.build_meta(vocab=50), StateTensors(state), "qwen2_audio", label="here")
    assert mismatches[0] == "audio_tower.conv1.bias is missing" and len(mismatches) == 3


def test_a_part_without_a_counterpart_in_the_layout_is_named():
    net = nets.build("qwen_audio")
    state = dict(export_tensors(nets.build().state_dict(), "qwen2_audio"))
    assert "model: boundary.weight has no counterpart in the layout" in load_error(net, state, "qwen2_audio")


def test_a_part_that_the_layout_cannot_contain_is_refused(net: AudioLM):
    state = {"encoder.positional_embedding": torch.zeros(1)}
    message = "weights.encoder=runs/a (whisper_openai layout) has no llm: expected encoder"
    assert load_error(net, state, "whisper_openai", parts=["llm"]) == message


# --- growing vocabularies -----------------------------------------------------------------------------------------


def llm_tensors(n_rows: int, **config: object) -> dict[str, Tensor]:
    """Return a language model's tensors as transformers names them."""
    return nets.build(vocab=n_rows, **config).llm.state_dict()


@pytest.mark.parametrize("chunk", [7, 1024])
def test_new_vocabulary_rows_are_the_mean_of_the_old_ones_with_little_noise(
    monkeypatch: pytest.MonkeyPatch, chunk: int
):
    monkeypatch.setattr(loading, "_CHUNK", chunk)
    torch.manual_seed(0)
    state = llm_tensors(400)
    channels = torch.linspace(-3, 3, 32)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = channels + state[name] * (1 + channels.abs())
    net = nets.build(vocab=2400)
    loading.load(net, StateTensors(state), layout="causal_lm", parts=["llm"], label="llm", seed=3)
    drawn = []
    for name, table in (("model.embed_tokens.weight", net.llm.model.embed_tokens), ("lm_head.weight", net.llm.lm_head)):
        old, new = table.weight[:400], table.weight[400:]
        assert torch.equal(old, state[name])
        noise = (new - old.mean(0)) / old.std(0, correction=0)
        assert (noise.mean(0).abs() < 5 * 0.01 / len(new) ** 0.5).all()
        torch.testing.assert_close(noise.std(0), torch.full((32,), 0.01), rtol=0.1, atol=0)
        drawn.append(noise / 0.01)
    correlation = (drawn[0] * drawn[1]).mean().abs()
    assert correlation < 5 / drawn[0].numel() ** 0.5  # embedding and head are drawn independently


@torch.no_grad()
def test_a_grown_vocabulary_changes_neither_loss_nor_greedy_answers(smollm2: Path):
    """Load SmolLM2 with all control tokens. New rows as large as the old ones would add 0.6 to the loss."""
    source = identify(smollm2)

    def measure(tokenizer: Tokenizer, n_rows: int) -> tuple[float, list[list[int]]]:
        """Return the loss on a paragraph of English, and the ids of greedy answers."""
        net = nets.build_meta(vocab=n_rows, **source.config)
        sharding.materialise(net, "cpu", draw=False)
        loading.load(net, source.open_tensors(), layout=source.layout, parts=["llm"], label="weights.llm")
        rows = [list(tokenizer.encode_plain(text)) for text in (PARAGRAPH, "The three primary colours are")]
        logits = net.logits(packs.pack([[rows[0]]], net.geometry))
        answers = net.generate(packs.pack([[row] for row in rows], net.geometry), GenerationSettings(max_new_tokens=8))
        return cross_entropy(logits[:-1], torch.tensor(rows[0][1:])).item(), answers

    tokenizer, n_rows = Tokenizer.load(smollm2), source.config["vocab_size"]
    assert tokenizer.size == n_rows + 3317
    (loss, answers), (grown_loss, grown_answers) = (measure(tokenizer, size) for size in (n_rows, tokenizer.size))
    assert loss < 4  # the weights are those of a trained model
    assert abs(grown_loss - loss) < 1e-3 and grown_answers == answers


def test_new_vocabulary_rows_depend_only_on_the_seed():
    state = llm_tensors(30)
    tables = []
    for seed in (1, 1, 2):
        net = nets.build()
        loading.load(net, StateTensors(state), layout="causal_lm", parts=["llm"], label="llm", seed=seed)
        tables.append(net.llm.lm_head.weight)
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert torch.equal(tables[0][:30], tables[2][:30])


def test_vocabulary_tables_never_shrink_and_grow_only_for_a_language_model(net: AudioLM):
    larger = load_error(net, llm_tensors(50), "causal_lm", parts=["llm"])
    assert "lm_head.weight has shape (50, 32), expected (41, 32) (set model.vocab_rows=50 to match its voc" in larger
    assert "llm.lm_head.weight has shape (30, 32), expected (41, 32)" in load_error(
        net, nets.build(vocab=30).state_dict()
    )


# --- files --------------------------------------------------------------------------------------------------------


def test_tensors_of_files_are_read_by_name_and_by_slice(source_net: AudioLM, tmp_path: Path):
    state = {**source_net.state_dict(), "half": torch.randn(3, 4).bfloat16(), "scalar": torch.tensor(2.0)}
    files = TensorFiles.open(write(tmp_path, state, 3))
    assert set(files.keys()) == set(state)
    for name, tensor in state.items():
        assert (files.shape(name), files.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(files.read(name), tensor)
        all_slices = tuple(slice(n // 3, n - n // 4) for n in tensor.shape)
        for slices in (all_slices, all_slices[:1]):
            assert torch.equal(files.read(name, slices), tensor[slices])
            assert torch.equal(StateTensors(state).read(name, slices), tensor[slices])
    assert TensorFiles.open(next(tmp_path.glob("model-00001-*"))).keys() < set(state)


def test_missing_files_are_reported(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{path}: expected a safetensors file, or a directory with model"):
            TensorFiles.open(path)


def test_a_missing_shard_is_named(source_net: AudioLM, tmp_path: Path):
    out = write(tmp_path, source_net.state_dict(), 3)
    shard = sorted(out.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"index.json names the shard {shard.name}, which is missing in the same directory"
    ):
        TensorFiles.open(out)


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("n_bytes", [0, 5, 300, -1])
def test_a_truncated_file_is_named(source_net: AudioLM, tmp_path: Path, n_shards: int, n_bytes: int):
    file = sorted(write(tmp_path, source_net.state_dict(), n_shards).glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=rf"{file} is not a complete safetensors file \(.*\): copy it again$"):
        TensorFiles.open(tmp_path)


def test_an_invalid_shard_index_is_named(source_net: AudioLM, tmp_path: Path):
    index = write(tmp_path, source_net.state_dict(), 3) / "model.safetensors.index.json"
    for content in ("", "[]", "{}", '{"weight_map": '):
        index.write_text(content)
        with pytest.raises(ValueError, match="index.json is not an index of shards: expected JSON with a weight_map"):
            TensorFiles.open(tmp_path)


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path):
    header = json.dumps({"odd": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match=rf"{file}: odd has type F8_E8M0"):
        TensorFiles.open(tmp_path).dtype("odd")


# --- writing ------------------------------------------------------------------------------------------------------


def test_shards_have_the_published_names_and_an_index(source_net: AudioLM, tmp_path: Path):
    state = source_net.state_dict()
    limit = 20_000
    write_sharded(state.items(), tmp_path, max_shard_bytes=limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    assert {path.name for path in tmp_path.iterdir()} == {*shards, "model.safetensors.index.json"}
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in state.values())}
    for shard in shards:
        names = [name for name, file in index["weight_map"].items() if file == shard]
        size = sum(state[name].nbytes for name in names)
        assert size <= limit or len(names) == 1
    assert_equal({name: TensorFiles.open(tmp_path).read(name) for name in state}, state)


def test_tensors_that_share_memory_are_written_separately(tmp_path: Path):
    table = torch.randn(6, 4)
    state = {"one": table, "same": table, "transposed": table.T, "part": table[1:3]}
    write_sharded(state.items(), tmp_path)
    assert_equal({name: TensorFiles.open(tmp_path).read(name) for name in state}, state)


def test_existing_weights_are_not_overwritten(source_net: AudioLM, tmp_path: Path):
    write(tmp_path, source_net.state_dict())
    with pytest.raises(ValueError, match=rf"{tmp_path} already contains weights \(model.safetensors\): choose another"):
        write(tmp_path, source_net.state_dict(), 3)


def test_an_interrupted_write_leaves_no_loadable_weights(source_net: AudioLM, tmp_path: Path):
    def interrupted_tensors():
        yield from source_net.state_dict().items()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_sharded(interrupted_tensors(), tmp_path, max_shard_bytes=20_000)
    with pytest.raises(FileNotFoundError):
        TensorFiles.open(tmp_path)
    write(tmp_path, source_net.state_dict())


# --- memory -------------------------------------------------------------------------------------------------------


class RecordingFiles(TensorFiles):
    """Count the elements that are read, and record which weight files are mapped during each read."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.n_read, self.mapped = 0, []

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        tensor = super().read(name, index)
        self.n_read += tensor.numel()
        files = {line.split()[-1] for line in MAPS.read_text().splitlines() if line.endswith(".safetensors")}
        if not self.mapped or self.mapped[-1] != files:
            self.mapped.append(files)
        return tensor


@pytest.mark.skipif(not MAPS.is_file(), reason="needs Linux' list of mapped files")
def test_each_shard_is_opened_once_and_only_one_is_mapped_at_a_time(
    net: AudioLM, source_net: AudioLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gc.collect()  # files of earlier tests may still be mapped
    source = RecordingFiles.open(write(tmp_path, source_net.state_dict(), 4))
    opened, open_file = [], tensors._open
    monkeypatch.setattr(tensors, "_open", lambda file: opened.append(file) or open_file(file))
    loading.load(net, source, layout="auris", label="shards")
    assert sorted(opened) == sorted(tmp_path.glob("*.safetensors")) and len(opened) == 4
    assert [len(files) for files in source.mapped] == [1] * 4
    assert source.n_read == sum(tensor.numel() for tensor in net.state_dict().values())


# --- sharded nets -------------------------------------------------------------------------------------------------

VOCAB, GROWN = 41, 91  # not divisible by two; after growing, the second rank has only new rows


def shard_net(net: AudioLM) -> None:
    for block in (*net.encoder.blocks, *net.llm.model.layers):
        fully_shard(block)
    fully_shard(net)


def load_as_a_rank(directory: Path, world_size: int) -> None:
    """Load into shards from each layout and compare the gathered tensors with the expected ones."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size)
    for layout in ("auris", "qwen_audio", "causal_lm"):
        net = nets.build_meta("qwen_audio", vocab=GROWN if layout == "causal_lm" else VOCAB)
        shard_net(net)
        sharding.materialise(net, "cpu", draw=False)
        source = RecordingFiles.open(directory / layout)
        parts = ["llm"] if layout == "causal_lm" else None
        loading.load(net, source, layout=layout, parts=parts, label=layout, seed=7)
        expected = torch.load(directory / f"{layout}.pt", weights_only=True)
        n_local = 0
        for name, tensor in net.state_dict().items():
            if name in expected:
                sharded = isinstance(tensor, DTensor)
                assert sharded == (name != "encoder.positions"), name
                assert torch.equal(tensor.full_tensor() if sharded else tensor, expected[name]), (layout, name)
                n_local += (tensor.to_local() if sharded else tensor).numel()
        if layout != "causal_lm":
            assert source.n_read == n_local  # no rank reads the slices of another rank
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not MAPS.is_file(), reason="needs Linux' list of mapped files")
def test_each_rank_reads_only_its_own_slices(tmp_path: Path):
    torch.manual_seed(0)
    full_net = nets.build("qwen_audio", vocab=VOCAB)
    states = {
        "auris": full_net.state_dict(),
        "qwen_audio": dict(export_tensors(full_net.state_dict(), "qwen_audio")),
        "causal_lm": llm_tensors(VOCAB),
    }
    for layout, state in states.items():
        write(tmp_path / layout, state, 3)
        net = nets.build("qwen_audio", vocab=GROWN if layout == "causal_lm" else VOCAB)
        parts = ["llm"] if layout == "causal_lm" else None
        loading.load(net, StateTensors(state), layout=layout, parts=parts, label=layout, seed=7)
        expected = {name: t for name, t in net.state_dict().items() if layout != "causal_lm" or name.startswith("llm.")}
        torch.save(expected, tmp_path / f"{layout}.pt")
    logs = tmp_path / "logs"
    assert in_processes(partial(load_as_a_rank, tmp_path, 2), 2, logs) == [0, 0], read_logs(logs)


def test_loaded_weights_do_not_change_if_the_file_is_overwritten(net: AudioLM, tmp_path: Path):
    """A net owns its memory and holds no view of the file."""
    file = tmp_path / "model.safetensors"
    save_file({name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()}, file)
    loading.load(net, TensorFiles.open(file), layout="auris", label=str(file))
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))
    assert all((tensor == 1).all() for tensor in net.state_dict().values())


def test_the_weights_digest_follows_the_weights_and_can_exclude_adapters(net: AudioLM):
    before = tensors.weights_digest(net)
    adapters.attach(net, [adapters.NEW_TOKENS], token_ids=[3])
    adapters.initialise(net, seed=0)
    assert tensors.weights_digest(net, with_adapters=False) == before != tensors.weights_digest(net)
    with torch.no_grad():
        net.projector.bias[0] += 1e-3
    assert tensors.weights_digest(net, with_adapters=False) != before
