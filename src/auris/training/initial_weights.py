"""Initial weights of a run: find their sources, and check that they fit the model.

Names and shapes of tensors do not show the number of attention heads, the base of the rotary embedding and other
settings. With another value, a model would load weights but compute another function than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch

from auris.config import Config
from auris.errors import UserError
from auris.model import llm
from auris.model.audio_lm import AudioLM
from auris.model.vocabulary import input_table
from auris.model.weights import loading
from auris.model.weights.identify import ModelSource
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.loading import InitialWeights
from auris.text.tokenizer import Tokenizer, read_vocabulary
from auris.training.weight_settings import ENCODER_SIZES

# Attributes of a part that determine its function together with its weights. `llm.function_fields` lists those of the
# language model.
_ATTRIBUTES = {"encoder": ENCODER_SIZES, "pooling": ("k",)}
# Widths of the encoder and the LLM, on which the shapes of all parts between them depend.
_WIDTHS = ("model.encoder.width", "model.llm.config.hidden_size")
# An aligner's language model is compared by the embeddings of its first tokens.
_COMPARED_ROWS = 1024
_MIN_SIMILARITY = 0.5


@dataclass(frozen=True)
class Difference:
    """A setting with which the weights were trained, and which has another value in the model.

    Attributes:
        key: key of the config.
        trained: value with which the weights were trained.
        configured: value in the model.
    """

    key: str
    trained: Any
    configured: Any

    def __str__(self) -> str:
        return f"{self.key} is {_format(self.configured)}, but it was {_format(self.trained)} in training"


def find_initial_weights(
    config: Config, sources: Mapping[str, ModelSource], net: AudioLM, tokenizer: Tokenizer
) -> list[InitialWeights]:
    """Return the weights to load for `checkpoint` and for each part in `weights`, in this order.

    Args:
        config: Resolved config of the run.
        sources: Sources of the weights by key (`weight_settings.find_sources`).
        net: The model, which may be on the meta device.
        tokenizer: Tokenizer of the run.

    Raises:
        UserError: Weights do not fit the model, or were trained with other settings of the model or another vocabulary.
    """
    initial: list[InitialWeights] = []
    aligner: InitialWeights | None = None
    for key, source in sources.items():
        label, part = f"{key}={source.path}", key.removeprefix("weights.")
        is_aligner = part == "projector" and (source.config.get("data") or {}).get("view") == "spoken"
        if part in ("checkpoint", "llm") or is_aligner:
            _check_vocabulary(label, source, config, tokenizer, only_text=is_aligner)
        weights = InitialWeights(
            source=source.open_tensors(),
            layout=source.layout,
            parts=None if key == "checkpoint" else [part],
            label=label,
        )
        _check_fit(weights, source, config["model"], net)
        initial.append(weights)
        if is_aligner:
            aligner = weights
    of_llm = [weights for weights in initial if weights.parts is None or "llm" in weights.parts]
    if aligner is not None and of_llm:
        _check_aligned(aligner, of_llm[-1], net)
    return initial


@torch.no_grad()
def _check_aligned(aligner: InitialWeights, language_model: InitialWeights, net: AudioLM) -> None:
    """Raise UserError if an aligner's projector was aligned to another language model than the run starts from.

    The same model may have been trained further in the meantime, which changes its embedding little.
    """
    table = input_table(net.llm).weight
    name = next(name for name, parameter in net.named_parameters() if parameter is table)
    rows = []
    for weights in (aligner, language_model):
        layout = LAYOUTS[weights.layout]
        names = {layout.spell(key): key for key in weights.source.keys()}  # noqa: SIM118  not a mapping
        stored = names[layout.layout_name(name) or name]
        embeddings = weights.source.read(stored, (slice(0, _COMPARED_ROWS),)).float()
        rows.append(embeddings - embeddings.mean(0))
    n_rows = min(map(len, rows))
    similarity = float(torch.cosine_similarity(rows[0][:n_rows], rows[1][:n_rows]).mean())
    if similarity < _MIN_SIMILARITY:
        raise UserError(
            f"{aligner.label} was aligned to another language model than {language_model.label} (mean cosine "
            f"similarity of embeddings {similarity:.2f}, expected at least {_MIN_SIMILARITY}): train "
            f"experiment=align with {language_model.label}"
        )


def _check_vocabulary(
    label: str, source: ModelSource, config: Config, tokenizer: Tokenizer, *, only_text: bool
) -> None:
    """Raise UserError if rows of the source's embedding belong to other tokens than in the run.

    The control tokens of an aligner do not matter, because audio never spells them (`only_text`).
    """
    if source.tokenizer is None or source.tokenizer == config["tokenizer"]:
        return
    # The run may have more tokens, for which the vocabulary of a plain language model grows.
    stored = read_vocabulary(source.tokenizer, only_text=only_text)
    if not stored.items() <= tokenizer.fast.get_vocab().items():
        raise UserError(
            f"{label} was trained with a vocabulary that differs from tokenizer={config['tokenizer']}: "
            f"set tokenizer={source.tokenizer}"
        )


def _check_fit(weights: InitialWeights, source: ModelSource, model: Config, net: AudioLM) -> None:
    """Raise UserError if the weights of a source do not fit the net or were trained with other settings.

    Args:
        weights: The weights.
        source: Description of their source.
        model: The section `model` of the run's config.
        net: The net that the section describes.
    """
    parts = source.parts.keys() if weights.parts is None else source.parts.keys() & weights.parts
    differences = [
        difference for part in sorted(parts) for difference in find_differences(part, source.parts[part], model, net)
    ]
    mismatches = loading.find_mismatches(net, weights.source, weights.layout, parts=weights.parts, label=weights.label)
    if mismatches and not differences:
        differences = _explain_shapes(parts, source, model, net)
    if differences or mismatches:
        message = loading.describe_misfit([*map(str, differences), *mismatches], weights.label, weights.layout)
        raise UserError(f"{message}: {_suggest(differences, model)}" if differences else message)


def find_differences(part: str, node: Config, model: Config, net: AudioLM) -> Iterator[Difference]:
    """Yield the settings of a part that have another value in the model than in training.

    Args:
        part: Name of the part.
        node: The part's section of the config with which its weights were trained.
        model: The section `model` of the run's config.
        net: The net that the section describes.
    """
    module = getattr(net, part)
    for name in _ATTRIBUTES.get(part, ()):
        trained, configured = node.get(name), getattr(module, name, None)
        # A default value has no entry in the node, and a class of the user may have other attributes.
        if None not in (trained, configured) and trained != configured:
            yield Difference(f"model.{part}.{name}", trained, configured)
    if part == "llm" and "config" in node:
        yield from _find_llm_differences(node["config"], model[part].get("config") or {}, net)


def _explain_shapes(parts: Collection[str], source: ModelSource, model: Config, net: AudioLM) -> list[Difference]:
    """Return the settings because of which tensors of pooling, projector and boundary have other shapes or names.

    These are their classes and arguments, and the widths of the encoder and the LLM, which they connect.
    """
    names = source.parts.keys() & {*parts, "pooling"} - {"encoder", "llm"}
    of_classes = [
        Difference(f"model.{part}.{name}", value, model[part].get(name))
        for part in sorted(names)
        for name, value in source.parts[part].items()
        if value != model[part].get(name)
    ]
    of_parts = [found for part, node in source.parts.items() for found in find_differences(part, node, model, net)]
    return of_classes + [found for found in of_parts if found.key in _WIDTHS]


def _find_llm_differences(trained_config: Config, config: Config, net: AudioLM) -> Iterator[Difference]:
    """Yield the settings that differ between the LLM of a source, given by its `config`, and the LLM of a net."""
    trained = llm.function_fields(llm.read_config(trained_config))
    configured = llm.function_fields(net.llm.config)
    for name in filter(configured.__contains__, trained):
        if not _equal(trained[name], configured[name]):
            is_nested = name == "rope_theta" and name in (config.get("rope_parameters") or ())
            key = f"rope_parameters.{name}" if is_nested else name
            yield Difference(f"model.llm.config.{key}", trained[name], configured[name])


def _equal(first: Any, second: Any) -> bool:
    """Return whether two values of a setting have the same effect.

    Numbers may differ by the rounding of float32, in which some files were converted. Lists have an entry for each
    layer; the number of layers is another setting.
    """
    if isinstance(first, list) and isinstance(second, list):
        return all(map(_equal, first, second))
    if isinstance(first, float) and isinstance(second, (int, float)):
        return isclose(first, second, rel_tol=1e-6)
    return first == second


def _suggest(differences: Sequence[Difference], model: Config) -> str:
    """Return how to remove the differences."""
    if any(difference.key == "model.llm.config.model_type" for difference in differences):
        return "leave out the overrides of model.llm, whose settings follow from the weights"
    return f"set {' '.join(override_for(difference, model) for difference in differences)}"


def override_for(difference: Difference, model: Config) -> str:
    """Return the override that gives a setting the value that it had in training."""
    *sections, name = difference.key.split(".")[1:]
    node: Any = model
    for section in sections:
        node = node.get(section) or {}
    override = f"{'' if name in node else '+'}{difference.key}={_format(difference.trained)}"
    return f"'{override}'" if "{" in override or "[" in override else override


def _format(value: Any) -> str:
    """Return a value as overrides contain it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_format(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_format, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.6g}"
    return str(value)
