"""Shared fixtures: the optional test data next to the checkout, and a tiny corpus that is built once per session."""

from __future__ import annotations

import copy
import gc
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tokenizers import AddedToken

from support.corpora import build_corpus

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whenever a tokenizer is loaded or saved, transformers deep-copies thousands of control tokens. They are never changed
# in place, so a deep copy may share them: this takes a quarter off the time of tests that save models.
copy._deepcopy_dispatch[AddedToken] = lambda token, memo: token

# Hydra reads thirty YAML files for a composition. With libyaml this takes a quarter less time.
yaml.SafeLoader = yaml.CSafeLoader

SLOWEST_PACKAGES = ("end_to_end", "training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the packages with the slowest files first, so that all workers finish at about the same time."""
    tests = ROOT / "tests"
    items.sort(key=lambda item: item.path.relative_to(tests).parts[0] not in SLOWEST_PACKAGES)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from searching the millions of objects of torch and transformers again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Make float64 the default dtype, so that comparisons do not depend on rounding.

    The order of summation varies with batch size, instruction set and thread count. In float32, the differences in
    rounding that follow would exceed the tolerances.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """Compute in one thread. A module that forks processes needs it, because OpenMP's threads do not survive a fork."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real recordings and stored expected numbers, which are not part of the repository."""
    path = ROOT / "../shared/data"
    if not path.is_dir():
        pytest.skip("the shared test data next to the checkout is missing")
    return path


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Return the directory of a real encoder, that of Whisper base, which is not part of the repository."""
    path = ROOT / "../shared/models/whisper-base"
    if not path.is_dir():
        pytest.skip("the real models next to the checkout are missing")
    return path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the directory of a real language model, SmolLM2-135M-Instruct, which is not part of the repository."""
    script = ROOT / "../shared/models/unpack.py"
    if not script.is_file():
        pytest.skip("the real models next to the checkout are missing")
    path = tmp_path_factory.mktemp("models") / "smollm2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(path)])
        runpy.run_path(str(script))
    yield path
    shutil.rmtree(path)  # 270 MB, and pytest keeps the folders of its last three sessions


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a small synthetic corpus with its tokenizer."""
    row_counts = {
        "asr": {"en": 4, "zh": 2},
        "s2tt": {"de-en": 2, "en-de": 2},
        "lid": 2,
        "sgc": 2,
        "ks": 2,
        "sec": 2,
        "mic": 2,
        "aqa": 2,
    }
    return build_corpus(tmp_path_factory.mktemp("embedded") / "corpus", row_counts)
