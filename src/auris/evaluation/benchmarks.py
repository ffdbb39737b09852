"""Named test sets (`configs/benchmark`): their files, prompts and decoding settings, and the parts with own scores.

(Speed and memory benchmarks are in the top-level directory `benchmarks/`.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import cast

from auris.config import Config, compose, resolve
from auris.errors import MissingFileError, UserError

Entry = str | Mapping[str, object]
"""A manifest for `data.manifests.read_manifests`: a path, or a mapping with a path and columns."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Test set, as configured by a file of `configs/benchmark` and the user's overrides.

    Attributes:
        name: Name of the result files; None names them after the manifests.
        test: The manifests. None: `files` in the directory `root`.
        root: Directory of the files and their audio.
        files: Names of the published files.
        origin: Where to get these files, for the error message if one is missing.
        parts: Parts of the test set, each with a score of its own (`predictions.split_by_part`).
        prompt: The published prompt by version of the model; None: that of the task.
        generation: The published decoding settings by version of the model.
        metrics: Metrics of the unprocessed response, in addition to those of the task.
        script: The released script whose numbers are printed as well (`metrics.official`).
    """

    name: str | None = None
    test: Entry | Sequence[Entry] | None = None
    root: str | None = None
    files: Sequence[str] = ()
    origin: str = ""
    parts: Sequence[str] = ()
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
        names = [field.name for field in fields(cls)]
        if unknown := sorted(config.keys() - set(names)):
            raise UserError(f"benchmark.{unknown[0]}: unknown key, expected {', '.join(names)}")
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
                f"benchmark={self.name} needs the directory of its files: {self._advice(self.files, 'DIR')}"
            )
        root = Path(self.root)
        if missing := [file for file in self.files if not (root / file).is_file()]:
            raise MissingFileError(
                f"benchmark={self.name}: no {' and no '.join(missing)} in {root}; {self._advice(missing, root)}"
            )
        return [str(root / file) for file in self.files]

    def _advice(self, files: Sequence[str], root: str | Path) -> str:
        return (
            f"put {', '.join(files)} from {self.origin} and the audio there, and set benchmark.root={root}; for files "
            "in another format: benchmark.test=[{path: FILE, columns: ..., labels: ...}]"
        )

    def changes(self, version: str, prompt: Config | None, generation: Mapping[str, object]) -> list[str]:
        """Return the user's deviations from the published prompt and decoding, which become part of the signature."""
        own_prompt, own_decoding = self.prompt.get(version), self.generation.get(version)
        changes = [f"prompt:{prompt['_target_'].rpartition('.')[2]}"] if prompt and own_prompt else []
        if own_decoding is None:
            return changes
        own = {"do_sample": False, **own_decoding}
        chosen = {key: value for key, value in generation.items() if value is not None}
        return changes + [f"{key}:{value}" for key, value in chosen.items() if own.get(key) != value]


def members(config: Config) -> list[Benchmark]:
    """Return the benchmarks of a group, each with the group's root, or the single benchmark of a config."""
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
    """
    missing = []
    for benchmark in benchmarks:
        try:
            benchmark.manifests()
        except MissingFileError as error:
            missing.append(str(error))
    if missing:
        raise MissingFileError("\n".join(missing))
