"""The model card (README.md) of an exported directory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import yaml

import auris
from auris.config import Config
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.errors import count
from auris.files import read_jsonl
from auris.inference.audio_model import AudioModel
from auris.inference.load import RELEASED
from auris.metrics.measures import find_measure
from auris.model.audio_lm import AudioLM
from auris.model.weights.identify import KINDS, ModelSource

# Values of the label `provenance` -> descriptions. In a result, the values of all test rows are joined by "+".
_PROVENANCE = {
    "real": "real recordings",
    "mixed": "partly synthetic",
    "tts": "synthetic speech",
    "procedural": "synthetic sound",
    "unknown": "of unknown origin",
}
_USAGE = {  # Python code for each format
    "qwen2_audio": """from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

model = Qwen2AudioForConditionalGeneration.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")""",
    "qwen_audio": """# with the code of github.com/QwenLM/Qwen-Audio, or
import auris

model = auris.load("{name}")""",
    "auris": """import auris

model = auris.load("{name}")
model.generate(audio="clip.wav", prompt="...")""",
}


def render_card(model: AudioModel, source: ModelSource, name: str, format: str, reasons: list[str]) -> str:
    """Return the text of the card, which describes the model, its training, its data and its results.

    Args:
        model: the exported model.
        source: the source from which the model was loaded.
        name: name of the exported directory.
        format: format of the exported directory.
        reasons: a phrase for each reason why the model was not exported in a published format.
    """
    config = model.config
    is_published_system = config["study"] == RELEASED
    library = "transformers" if format == "qwen2_audio" else "auris"
    sections = [
        f"---\nlibrary_name: {library}\ntags: [auris, audio-text-to-text]\n---",
        f"# {name}",
        f"Exported by auris {auris.__version__} from {KINDS[source.kind]} (`{source.path.resolve().name}`).",
        f"```python\n{_USAGE[format].format(name=name)}\n```",
        "## Parts",
        "\n".join(_part_lines(model.net)),
    ]
    if reasons:
        sections += ["Other formats do not support this model:", "\n".join(f"- {reason}" for reason in reasons)]
    if is_published_system:
        sections.append("The weights are those of the source directory; the model was not trained further.")
    else:
        sections += ["## Data", "\n".join(_data_lines(config)), "## Results", "\n".join(_result_lines(source))]
        config_yaml = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        sections += ["## Recipe", "\n".join(_recipe_lines(config)), f"```yaml\n{config_yaml}```"]
    return "\n\n".join(sections) + "\n"


def _part_lines(net: AudioLM) -> Iterator[str]:
    """Yield the lines of a table of the model's parts."""
    yield "| part | kind | parameters | precision |"
    yield "|---|---|---|---|"
    for part, module in net.named_children():
        parameters = list(module.parameters())
        kind = net.llm.config.model_type if part == "llm" else type(module).__name__
        precision = "+".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "-"
        yield f"| {part} | {kind} | {sum(p.numel() for p in parameters):,} | {precision} |"


def _recipe_lines(config: Config) -> Iterator[str]:
    """Yield a line about the run, a line about its trained parts, and a line for each part with initial weights."""
    yield f"- study `{config['study']}`, arm `{config['arm']}`, seed {config['seed']}, {config['max_steps']} steps"
    yield f"- trained: {', '.join(config['trainable'])}; all other parts frozen"
    for part, source in config["weights"].items():
        if source is not None:
            yield f"- initial weights of {part}: `{source}`"


def _data_lines(config: Config) -> Iterator[str]:
    """Yield a line for each training manifest: number of rows, hours, origin of the audio, licences."""
    for entry in config["data"]["train"]:
        try:
            [manifest] = read_manifests([entry])
        except (FileNotFoundError, ValueError):
            path = entry["path"] if isinstance(entry, Mapping) else entry
            yield f"- `{path}`: not available during the export"
            continue
        rows = [row for row in manifest.rows if row.problem is None]
        hours = sum(clip.duration or 0.0 for row in rows for clip in row.clips) / 3600
        n_by_origin = Counter(_describe_origin(row) for row in rows)
        origins = ", ".join(f"{n:,} {origin}" for origin, n in n_by_origin.most_common())
        licences = sorted({str(row.labels["licence"]) for row in rows if "licence" in row.labels})
        yield f"- `{manifest.name}`: {count(len(rows), 'row')}, {hours:.1f} h of audio ({origins})" + (
            f"; licences: {', '.join(licences)}" if licences else ""
        )


def _describe_origin(row: Row) -> str:
    if not row.clips:
        return "text"
    return _PROVENANCE.get(str(row.labels.get("provenance", "unknown")), _PROVENANCE["unknown"])


def _result_lines(source: ModelSource) -> Iterator[str]:
    """Yield the lines of a table of a run's results."""
    file = source.path / "results.jsonl"
    if not file.is_file():
        yield "Not evaluated."
        return
    yield "| benchmark | task | metric | value | 95 % interval | rows | test audio |"
    yield "|---|---|---|---|---|---|---|"
    for row in read_jsonl(file):
        metric = find_measure(row["metric"])
        value, low, high = (f"{metric.scale * row[key]:.1f}" for key in ("value", "low", "high"))
        origin = ", ".join(_PROVENANCE.get(label, _PROVENANCE["unknown"]) for label in row["provenance"].split("+"))
        cells = (row["benchmark"], row["task"], metric.label, value, f"[{low}, {high}]", str(row["n"]), origin)
        yield f"| {' | '.join(cells)} |"
