"""Targets of the benchmarks: the value that a prototype of this design reached, and a goal.

The prototype's values are medians of interleaved rounds on one CPU core with checked parity, measured with torch 2.13,
transformers 5.23 and TRL 1.16. A value written as a / b is the quotient of two ratios to a common baseline: a is the
prototype's ratio and b is the ratio of the target's peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SLACK = 0.05  # the gate allows results that are worse than the prototype's by this fraction


@dataclass(frozen=True, kw_only=True)
class Target:
    """The target of one figure of a benchmark.

    Attributes:
        benchmark: Name of the benchmark.
        preset: Name of the preset.
        settings: Settings that differ from their defaults.
        figure: Name of the figure in the result.
        prototype: Value of the prototype, None if it was not measured.
        goal: The goal, None if there is none.
        smaller_is_better: Whether the gate and the goal are upper bounds.
    """

    benchmark: str
    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    figure: str = "ratio"
    prototype: float | None = None
    goal: float | None = None
    smaller_is_better: bool = False

    @property
    def gate(self) -> float | None:
        """The worst accepted value, which is worse than the prototype's value by the fraction SLACK."""
        if self.prototype is None:
            return None
        return self.prototype * (1 + SLACK if self.smaller_is_better else 1 - SLACK)

    def judge(self, value: float) -> dict[str, Any]:
        """Return the prototype's value, the gate and the goal, and whether `value` meets the gate and the goal.

        Entries that depend on an attribute that is None are None.
        """
        verdict: dict[str, Any] = {"prototype": self.prototype}
        for name, bound in (("gate", self.gate), ("goal", self.goal)):
            meets = None if bound is None else value <= bound if self.smaller_is_better else value >= bound
            verdict |= {name: bound, f"meets_{name}": meets}
        return verdict


def _ratio(benchmark: str, preset: str, prototype: float | None, goal: float | None, **settings: Any) -> Target:
    return Target(benchmark=benchmark, preset=preset, settings=settings, prototype=prototype, goal=goal)


def _at_most(benchmark: str, preset: str, figure: str, prototype: float | None, goal: float) -> Target:
    return Target(
        benchmark=benchmark, preset=preset, figure=figure, prototype=prototype, goal=goal, smaller_is_better=True
    )


def _share_of_floor(benchmark: str, preset: str, **settings: Any) -> Target:
    return Target(benchmark=benchmark, preset=preset, settings=settings, figure="floor", goal=0.85)


TARGETS = (
    # The ratio depends on how fast a machine multiplies matrices and how fast it does everything else. So where the
    # prototype's ratio was not reached on every machine, the target is a share of the floor.
    _share_of_floor("train_step", "tiny"),
    _share_of_floor("train_step", "small", clips=2),
    _share_of_floor("train_step", "base"),
    _share_of_floor("train_step", "prop"),
    _share_of_floor("dpo_step", "tiny", pairs=4),
    _share_of_floor("dpo_step", "small"),
    _share_of_floor("dpo_step", "prop"),
    _ratio("train_step", "prop", 3.22, 3.5),
    _ratio("train_step", "prop", 2.04, 2.2, trained="sft", clips=4),
    _ratio("train_step", "prop", 3.27, 3.5, trained="pretrain", clips=4),
    _ratio("train_step", "prop", 1.47, 1.5, lengths="12-16", clips=2),
    _ratio("train_step", "prop", 1.17, 1.10, lengths="25-30", clips=2),
    _ratio("train_step", "tiny", 12.5 / 7.99, None, peer="open_mix"),
    _ratio("train_step", "small", 7.07 / 6.64, None, peer="open_mix", clips=2),
    _ratio("train_step", "prop", 3.22 / 2.08, 1.6, peer="open_mix"),
    _ratio("train_step", "prop", 1.47 / 1.46, 1.0, peer="open_mix", lengths="12-16", clips=2),
    _ratio("train_step", "prop", 1.17 / 1.10, 1.0, peer="open_mix", lengths="25-30", clips=2),
    _ratio("dpo_step", "tiny", 28.0 / 1.64, None, pairs=4, peer="precomputed"),
    _ratio("dpo_step", "small", 16.2 / 1.84, None, peer="precomputed"),
    _ratio("dpo_step", "prop", 7.72 / 1.37, 6.0, peer="precomputed"),
    _ratio("dpo_step", "prop", 3.85 / 1.03, None, lengths="10-16"),
    _ratio("dpo_step", "prop", 3.85 / 1.44, None, lengths="10-16", peer="precomputed"),
    _ratio("dpo_step", "prop", 3.45 / 1.08, 3.5, lengths="10-16", trained="sft"),
    _ratio("dpo_step", "prop", 3.45 / 1.60, 2.3, lengths="10-16", trained="sft", peer="precomputed"),
    _ratio("train_step", "base", None, 3.0, precision="bf16"),
    _ratio("dpo_step", "base", None, None),
    _ratio("bf16", "base", None, 1.8),
    _ratio("bf16", "prop", None, 1.8),
    _ratio("mel", "128", 12.4, 12.0),
    _ratio("mel", "128", 4.7, 5.0, lengths="1-30"),
    _ratio("mel", "80", 22.0, None),
    _ratio("mel", "80", 6.8, None, lengths="1-30"),
    _ratio("generate", "prop", 2.24, 2.5),
    _ratio("generate", "base", None, 3.0, clips=16),
    _at_most("memory", "small", "ratio", 0.27, 0.25),
    _at_most("memory", "base", "ratio", None, 0.3),
    *(
        target
        for preset, straggler in (("librispeech", 1.022), ("commonvoice", 1.011), ("mixed", 1.026))
        for target in (
            Target(benchmark="packing", preset=preset, figure="useful", prototype=0.998, goal=0.995),
            _at_most("packing", preset, "straggler", straggler, 1.03),
        )
    ),
    *(_at_most("startup", preset, "cpu_seconds", None, 1.5) for preset in ("overview", "help", "misspelt", "results")),
    _at_most("fit_overhead", "prop", "overhead", None, 0.05),
    _at_most("compile", "tiny", "graphs_encoder", None, 2),
    _at_most("compile", "tiny", "graphs_llm", None, 2),
    _at_most("compile", "tiny", "graphs_after_step_2", None, 0),
)
