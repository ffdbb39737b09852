"""Plan of the corpus: turns sizes by split, task and variant into one job per row, each with its own seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from auris.corpus import grammar
from auris.corpus.draws import pick
from auris.corpus.grammar import KEYWORDS, LANGUAGES, SPLITS
from auris.corpus.output import check_count, derive_seed
from auris.corpus.recipes import RECIPES, id_prefix
from auris.corpus.recording import Job
from auris.errors import UserError

Sizes = Mapping[str, Mapping[str, int | Mapping[str, int]]]


def scale_sizes(sizes: Any, scale: float) -> Any:
    """Multiply every number in `sizes` by `scale` and round it; positive numbers stay at least 1."""
    if isinstance(sizes, Mapping):
        return {key: scale_sizes(value, scale) for key, value in sizes.items()}
    if not isinstance(sizes, int):
        return sizes  # `plan` reports values that are no counts
    return max(round(sizes * scale), min(sizes, 1))


def plan(sizes: Sizes, directions: Sequence[str], seed: int) -> list[Job]:
    """Return a job for every row, by split and task; the variants of a task (languages, classes) are interleaved.

    Raises:
        UserError: A split, task, variant or direction is unknown, or a size is no count.
    """
    for direction in directions:
        if direction not in RECIPES["s2tt"].optional_variants:
            raise UserError(f"directions has {direction!r}, expected two of {', '.join(LANGUAGES)}, as in de-en")
    if unknown := set(sizes) - set(SPLITS):
        raise UserError(f"sizes has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}")
    jobs = []
    for split in SPLITS:
        if unknown := set(sizes.get(split, {})) - set(RECIPES):
            raise UserError(f"sizes.{split} has the tasks {sorted(unknown)}, expected {', '.join(RECIPES)}")
        for task, recipe in RECIPES.items():
            variants = tuple(directions) if task == "s2tt" else recipe.variants
            size = sizes.get(split, {}).get(task, 0)
            counts = _count_by_variant(f"sizes.{split}.{task}", size, variants, recipe.optional_variants)
            # Variants are interleaved in proportion, so that the first rows are a representative sample.
            places = sorted(
                (index / count, variant, index) for variant, count in counts.items() for index in range(count)
            )
            jobs += [
                Job(split, task, variant, index, derive_seed(seed, split, task, variant, index), id_prefix(task))
                for _, variant, index in places
            ]
    return jobs


def _count_by_variant(
    key: str, size: object, variants: Sequence[str], optional_variants: Sequence[str]
) -> dict[str, int]:
    """Return the number of rows of each variant: a number is divided evenly, and the first variants are rounded up."""
    if isinstance(size, Mapping):
        valid = dict.fromkeys((*variants, *optional_variants))
        if unknown := set(size) - set(valid):
            raise UserError(f"{key} has {sorted(unknown)}, expected rows by any of {', '.join(valid)}")
        return {variant: check_count(f"{key}.{variant}", count) for variant, count in size.items()}
    total = check_count(key, size)
    if total and not variants:
        raise UserError(f"{key}={total}, but directions is empty; set some, or {key}=0")
    return {variant: (total - index + len(variants) - 1) // len(variants) for index, variant in enumerate(variants)}


def draw_text(lines: int, seed: int, languages: Sequence[str]) -> list[str]:
    """Draw sentences of the training split: one in each language, then a keyword phrase, and again."""
    rng = np.random.default_rng(derive_seed(seed, "text"))
    text = []
    for index in range(lines):
        place = index % (len(languages) + 1)
        if place < len(languages):
            text.append(grammar.draw_sentence(rng, "train", languages[place]))
        else:
            text.append(grammar.draw_keyword_phrase(rng, "train", pick(rng, KEYWORDS)))
    return text
