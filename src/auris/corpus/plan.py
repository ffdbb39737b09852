"""Which rows the corpus has: from sizes by split, task and variant to one job per row, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from auris.corpus import grammar
from auris.corpus.draws import pick
from auris.corpus.grammar import KEYWORDS, LANGUAGES, SPLITS
from auris.corpus.output import check_count, derive_seed
from auris.corpus.recipes import RECIPES, mark
from auris.corpus.recording import Job
from auris.errors import UserError

Sizes = Mapping[str, Mapping[str, int | Mapping[str, int]]]


def scale_sizes(sizes: Any, scale: float) -> Any:
    """Multiply every number in `sizes` by `scale` and round it; what was positive stays at least 1."""
    if isinstance(sizes, Mapping):
        return {key: scale_sizes(value, scale) for key, value in sizes.items()}
    if not isinstance(sizes, int):
        return sizes  # `plan` names what is not a count
    return max(round(sizes * scale), min(sizes, 1))


def plan(sizes: Sizes, directions: Sequence[str], seed: int) -> list[Job]:
    """All rows to make, split by split and task by task; the variants of a task (languages, classes) take turns.

    Raises:
        ValueError: for an unknown split, task, language or direction, or a size that is no count.
    """
    for direction in directions:
        if direction not in RECIPES["s2tt"].others:
            raise UserError(f"directions has {direction!r}, expected two of {', '.join(LANGUAGES)}, as in de-en")
    if unknown := set(sizes) - set(SPLITS):
        raise UserError(f"sizes has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}")
    jobs = []
    for split in SPLITS:
        if unknown := set(sizes.get(split, {})) - set(RECIPES):
            raise UserError(f"sizes.{split} has the tasks {sorted(unknown)}, expected {', '.join(RECIPES)}")
        for task, recipe in RECIPES.items():
            variants = tuple(directions) if task == "s2tt" else recipe.variants
            shares = _deal(f"sizes.{split}.{task}", sizes.get(split, {}).get(task, 0), variants, recipe.others)
            # Every stretch of a task's rows has its variants in proportion, so that the first rows are a fair sample.
            places = sorted(
                (index / share, option, index) for option, share in shares.items() for index in range(share)
            )
            jobs += [
                Job(split, task, option, index, derive_seed(seed, split, task, option, index), mark(task))
                for _, option, index in places
            ]
    return jobs


def _deal(key: str, size: object, variants: Sequence[str], others: Sequence[str]) -> dict[str, int]:
    """Rows of each variant: as `size` says where it names them, else evenly, the first ones rounded up."""
    if isinstance(size, Mapping):
        known = dict.fromkeys((*variants, *others))
        if unknown := set(size) - set(known):
            raise UserError(f"{key} has {sorted(unknown)}, expected rows by any of {', '.join(known)}")
        for variant, share in size.items():
            check_count(f"{key}.{variant}", share)
        return dict(size)
    check_count(key, size)
    if size and not variants:
        raise UserError(f"{key}={size}, but directions is empty; name some, or set {key}=0")
    return {variant: (size - place + len(variants) - 1) // len(variants) for place, variant in enumerate(variants)}


def draw_text(lines: int, seed: int, languages: Sequence[str]) -> list[str]:
    """Sentences of the training split, the languages taking turns, and after each round of them a keyword phrase."""
    rng = np.random.default_rng(derive_seed(seed, "text"))
    text = []
    for index in range(lines):
        turn = index % (len(languages) + 1)
        if turn < len(languages):
            text.append(grammar.draw_sentence(rng, "train", languages[turn]))
        else:
            text.append(grammar.draw_keyword_phrase(rng, "train", pick(rng, KEYWORDS)))
    return text
