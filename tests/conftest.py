"""Fixtures: shared test data where it is at hand, and a tiny corpus made once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corpora import build_corpus

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("end_to_end", "training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the packages with the longest files first: at the end, no worker waits for one of them."""
    tests = ROOT / "tests"
    items.sort(key=lambda item: item.path.relative_to(tests).parts[0] not in LONGEST)


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Compute in float64 by default, so that a comparison does not depend on how a processor rounds.

    In float32 the kernels for other batch sizes, instruction sets and thread counts add in another order.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and golden numbers that are not part of the project."""
    path = ROOT / "../shared/data"
    if not path.is_dir():
        pytest.skip("needs the shared test data beside the checkout, which is absent here")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded corpus with its tokenizer."""
    few = {"asr": {"en": 4, "zh": 2}, "s2tt": 4, "lid": 2, "sgc": 2, "ks": 2, "sec": 2, "mic": 2, "aqa": 2}
    return build_corpus(tmp_path_factory.mktemp("embedded") / "corpus", few)
