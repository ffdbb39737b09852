"""Plan of the corpus: turns sizes by split, task and variant into a `RowSpec` for each row, which includes its seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from auris.corpus import grammar
from auris.corpus.draws import pick
from auris.corpus.grammar import KEYWORDS, SPLITS
from auris.corpus.output import derive_seed
from auris.corpus.recipes import RECIPES, Recipe, id_prefix
from auris.corpus.recording import RowSpec
from auris.errors import UserError

Sizes = Mapping[str, Mapping[str, int | Mapping[str, int]]]


def scale_sizes(sizes: Any, scale: float) -> Any:
    """Multiply every number in `sizes` by `scale` and round it; positive numbers stay at least 1."""
    if isinstance(sizes, Mapping):
        return {key: scale_sizes(value, scale) for key, value in sizes.items()}
    if not isinstance(sizes, int):
        return sizes  # `plan_rows` reports values that are not numbers of rows
    return max(round(sizes * scale), min(sizes, 1))


def plan_rows(sizes: Sizes, seed: int) -> list[RowSpec]:
    """Return a spec for every row, ordered by split and task.

    Args:
        sizes: Numbers of rows by split and task; see `build`.
        seed: Seed of the corpus.

    Raises:
        UserError: A split, task or variant is unknown, or a size is not a number of rows.
    """
    if unknown := set(sizes) - set(SPLITS):
        raise UserError(f"sizes has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}")
    specs = []
    for split in SPLITS:
        if unknown := set(sizes.get(split, {})) - set(RECIPES):
            raise UserError(f"sizes.{split} has the tasks {sorted(unknown)}, expected {', '.join(RECIPES)}")
        for task, recipe in RECIPES.items():
            size = sizes.get(split, {}).get(task, 0)
            counts = _count_by_variant(f"sizes.{split}.{task}", size, recipe)
            # Variants are interleaved in proportion, so that the first rows are a representative sample.
            order = sorted(
                (index / count, variant, index) for variant, count in counts.items() for index in range(count)
            )
            specs += [
                RowSpec(split, task, variant, index, derive_seed(seed, split, task, variant, index), id_prefix(task))
                for _, variant, index in order
            ]
    return specs


def plan_sentences(sentences: Iterable[str], language: str, seed: int) -> list[RowSpec]:
    """Return the spec of an `asr` row for each sentence, ordered by split.

    The split of a sentence follows from its text alone (`grammar.assign_split`), and its seed from its place among the
    sentences of the split. Therefore sentences that are appended do not change the rows before them.
    """
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for sentence in sentences:
        by_split[grammar.assign_split(sentence)].append(sentence)
    return [
        RowSpec(split, "asr", language, index, derive_seed(seed, split, "asr", language, index), id_prefix("asr"), text)
        for split, texts in by_split.items()
        for index, text in enumerate(texts)
    ]


def _count_by_variant(key: str, size: int | Mapping[str, int], recipe: Recipe) -> dict[str, int]:
    """Return the number of rows of each variant.

    If `size` is a number, it is divided evenly, and the first variants get the remainder.
    """
    if isinstance(size, Mapping):
        valid = dict.fromkeys((*recipe.variants, *recipe.optional_variants))
        if unknown := set(size) - set(valid):
            raise UserError(f"{key} has the variants {sorted(unknown)}, expected any of {', '.join(valid)}")
        return dict(size)
    n_variants = len(recipe.variants)
    return {variant: (size - index + n_variants - 1) // n_variants for index, variant in enumerate(recipe.variants)}


def draw_text(n_lines: int, seed: int, languages: Sequence[str]) -> list[str]:
    """Draw lines of text from the training split.

    The lines repeat this sequence: one sentence in each language, then one English keyword phrase.
    """
    rng = np.random.default_rng(derive_seed(seed, "text"))
    lines = []
    for index in range(n_lines):
        language_index = index % (len(languages) + 1)
        if language_index < len(languages):
            lines.append(grammar.draw_sentence(rng, "train", languages[language_index]))
        else:
            lines.append(grammar.draw_keyword_phrase(rng, "train", pick(rng, KEYWORDS)))
    return lines
