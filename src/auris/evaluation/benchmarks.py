"""Benchmarks, which are named test sets (`configs/benchmark`) with prompts and decoding settings.

The top-level directory `benchmarks/` contains something else: benchmarks of speed and memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import cast

from auris.config import Config, compose, resolve
from auris.data.manifests import Manifest
from auris.data.rows import Row
from auris.errors import MissingFileError, UserError

Entry = str | Mapping[str, object]
"""A manifest as `data.manifests.read_manifests` accepts it: a path, or a mapping with a path and columns."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Test set, as configured by a file of `configs/benchmark` and the user's overrides.

    The version of a model is `v1` if it is prompted like Qwen-Audio, and `v2` if it is prompted like Qwen2-Audio.

    Attributes:
        name: Name of the result files. If None, they are named after the manifests.
        test: The manifests. If None, they are `files` in the directory `root`.
        root: Directory of the files and their audio.
        files: Names of the published files.
        origin: Where to get these files, for the error message if a file is missing.
        parts: Subsets of the test set; each subset gets a separate score (`predictions.split_by_subset`). Either their
            names, or a dict from their names to the labels of their rows: {adults: {age: [18, null]}}.
        sets: Whether the groups of rows contain the name of their test set (`name_sets`).
        prompt: The published prompt by version of the model. None means the task's prompt.
        generation: The published decoding settings by version of the model.
        metrics: Metrics of the unprocessed response, in addition to the metrics of the task.
        script: Name of the authors' evaluation script whose scores are printed as well (`metrics.official`).
    """

    name: str | None = None
    test: Entry | Sequence[Entry] | None = None
    root: str | None = None
    files: Sequence[str] = ()
    origin: str = ""
    parts: Sequence[str] | Mapping[str, Mapping[str, object]] = ()
    sets: bool = False
    prompt: Mapping[str, str | None] = field(default_factory=dict)
    generation: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    script: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> Benchmark:
        """Build a benchmark from its config.

        Raises:
            UserError: A key is unknown.
        """
        valid_keys = [field.name for field in fields(cls)]
        if unknown_keys := sorted(config.keys() - set(valid_keys)):
            raise UserError(f"benchmark.{unknown_keys[0]}: unknown key, expected one of {', '.join(valid_keys)}")
        return cls(**config)

    def manifests(self) -> list[Entry]:
        """Return the test manifests.

        Raises:
            MissingFileError: A file is missing; the message says where to get it.
        """
        if self.test or not self.files:
            if self.test is None or isinstance(self.test, str | Mapping):
                return [cast("Entry", self.test)]  # `read_manifests` reports None
            return list(self.test)
        if self.root is None:
            raise MissingFileError(
                f"benchmark={self.name} needs the directory of its files: {self._format_advice(self.files, 'DIR')}"
            )
        root = Path(self.root)
        if missing := [file for file in self.files if not (root / file).is_file()]:
            raise MissingFileError(
                f"benchmark={self.name}: no {' and no '.join(missing)} in {root}; {self._format_advice(missing, root)}"
            )
        return [str(root / file) for file in self.files]

    def _format_advice(self, files: Sequence[str], root: str | Path) -> str:
        return (
            f"put {', '.join(files)} (from {self.origin}) and the audio in {root}, and set benchmark.root={root}; for "
            "files in another format, set benchmark.test=[{path: FILE, columns: ..., labels: ...}]"
        )

    def deviations(self, version: str, prompt: Config | None, generation: Mapping[str, object]) -> list[str]:
        """Return the user's deviations from the published prompt and decoding settings, such as `do_sample:True`.

        They become part of the signature of each score.

        Args:
            version: Version of the model.
            prompt: Config of the user's prompt style; None if the user has not set one.
            generation: The user's decoding settings; None values are not set.
        """
        published_prompt, published_decoding = self.prompt.get(version), self.generation.get(version)
        deviations = [f"prompt:{prompt['_target_'].rpartition('.')[2]}"] if prompt and published_prompt else []
        if published_decoding is None:
            return deviations
        published = {"do_sample": False, **published_decoding}  # greedy, unless the authors say otherwise
        user_settings = {key: value for key, value in generation.items() if value is not None}
        return deviations + [f"{key}:{value}" for key, value in user_settings.items() if published.get(key) != value]


def name_sets(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return manifests whose rows have the label `set`, the name of their test set.

    The name is that of the file up to the first dot, such as `librispeech` for DIR/librispeech.test.jsonl, or that of
    the directory for a file `test.jsonl`. Rows that have the label keep it; `auris prepare layout=manifest` adds it.
    """

    def add_set(row: Row, path: Path) -> Row:
        name = path.name.split(".")[0]
        return replace(row, labels={"set": path.parent.name if name == "test" else name, **row.labels})

    return [replace(m, rows=tuple(add_set(row, Path(m.path)) for row in m.rows)) for m in manifests]


def list_members(config: Config) -> list[Benchmark]:
    """Return the benchmarks of a group (a config with the key `members`), or the single benchmark of a config.

    The `root` of a group applies to all its members.
    """
    if "members" not in config:
        return [Benchmark.from_config(config)]
    benchmarks = []
    for name in config["members"]:
        member = resolve(compose([f"benchmark={name}"], "evaluate"))["benchmark"]
        benchmarks.append(replace(Benchmark.from_config(member), root=config["root"]))
    return benchmarks


def check_files(benchmarks: Iterable[Benchmark]) -> None:
    """Check that the files of all benchmarks exist; call it before a model is loaded.

    Raises:
        MissingFileError: Files are missing; the message names all of them.
        UserError: A benchmark has no files.
    """
    missing = []
    for benchmark in benchmarks:
        try:
            if not benchmark.manifests():
                raise UserError("data.test=[]: expected at least one file, for example data.test=[FILE.jsonl]")
        except MissingFileError as error:
            missing.append(str(error))
    if missing:
        raise MissingFileError("\n".join(missing))
