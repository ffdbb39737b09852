"""What each measured figure is held against: what a prototype of this design measured, and the goal.

The prototype's figures are medians of interleaved rounds on one CPU core, parity checked, with torch 2.13, transformers
5.23 and TRL 1.16; of a row with a second peer, the quotient of the prototype's two ratios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SLACK = 0.05  # the gate is the prototype's figure less so much of it


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure of one benchmark with these settings; settings that are not named have their defaults."""

    benchmark: str
    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    figure: str = "ratio"
    prototype: float | None = None
    goal: float | None = None
    smaller_is_better: bool = False

    @property
    def gate(self) -> float | None:
        if self.prototype is None:
            return None
        return self.prototype * (1 + SLACK if self.smaller_is_better else 1 - SLACK)

    def judge(self, value: float) -> dict[str, Any]:
        """The gate and the goal, and whether this value meets them; None where there is none."""
        verdict: dict[str, Any] = {"prototype": self.prototype}
        for name, bound in (("gate", self.gate), ("goal", self.goal)):
            reached = None if bound is None else value <= bound if self.smaller_is_better else value >= bound
            verdict |= {name: bound, f"meets_{name}": reached}
        return verdict


def _of(benchmark: str, preset: str, prototype: float | None, goal: float | None, **settings: Any) -> Target:
    return Target(benchmark=benchmark, preset=preset, settings=settings, prototype=prototype, goal=goal)


def _at_most(benchmark: str, preset: str, figure: str, prototype: float | None, goal: float) -> Target:
    return Target(
        benchmark=benchmark, preset=preset, figure=figure, prototype=prototype, goal=goal, smaller_is_better=True
    )


TARGETS = (
    _of("train_step", "tiny", 12.5, 13.0),
    _of("train_step", "small", 7.07, 8.0, clips=2),
    _of("train_step", "prop", 3.22, 3.5),
    _of("train_step", "prop", 2.04, 2.2, trained="sft", clips=4),
    _of("train_step", "prop", 3.27, 3.5, trained="pretrain", clips=4),
    _of("train_step", "prop", 1.47, 1.5, lengths="12-16", clips=2),
    _of("train_step", "prop", 1.17, 1.10, lengths="25-30", clips=2),
    _of("train_step", "tiny", 12.5 / 7.99, None, peer="open_mix"),
    _of("train_step", "small", 7.07 / 6.64, None, peer="open_mix", clips=2),
    _of("train_step", "prop", 3.22 / 2.08, 1.6, peer="open_mix"),
    _of("train_step", "prop", 1.47 / 1.46, 1.0, peer="open_mix", lengths="12-16", clips=2),
    _of("train_step", "prop", 1.17 / 1.10, 1.0, peer="open_mix", lengths="25-30", clips=2),
    _of("dpo_step", "tiny", 28.0 / 1.21, None, pairs=4),
    _of("dpo_step", "tiny", 28.0 / 1.64, None, pairs=4, peer="precomputed"),
    _of("dpo_step", "small", 16.2 / 1.34, None),
    _of("dpo_step", "small", 16.2 / 1.84, None, peer="precomputed"),
    _of("dpo_step", "prop", 7.72 / 1.02, 8.0),
    _of("dpo_step", "prop", 7.72 / 1.37, 6.0, peer="precomputed"),
    _of("dpo_step", "prop", 3.85 / 1.03, None, lengths="10-16"),
    _of("dpo_step", "prop", 3.85 / 1.44, None, lengths="10-16", peer="precomputed"),
    _of("dpo_step", "prop", 3.45 / 1.08, 3.5, lengths="10-16", trained="sft"),
    _of("dpo_step", "prop", 3.45 / 1.60, 2.3, lengths="10-16", trained="sft", peer="precomputed"),
    _of("mel", "128", 12.4, 12.0),
    _of("mel", "128", 4.7, 5.0, lengths="1-30"),
    _of("mel", "80", 22.0, None),
    _of("mel", "80", 6.8, None, lengths="1-30"),
    _of("generate", "tiny", 10.1, 10.0),
    _of("generate", "prop", 2.24, 2.5),
    _at_most("memory", "small", "ratio", 0.27, 0.25),
    *(
        target
        for preset, straggler in (("librispeech", 1.022), ("commonvoice", 1.011), ("mixed", 1.026))
        for target in (
            Target(benchmark="packing", preset=preset, figure="useful", prototype=0.998, goal=0.995),
            _at_most("packing", preset, "straggler", straggler, 1.03),
        )
    ),
    Target(benchmark="loader", preset="flac", figure="audio_seconds", prototype=2600.0, goal=2500.0),
    Target(benchmark="loader", preset="flac", goal=5.0),
    *(_at_most("startup", preset, "cpu_seconds", None, 1.5) for preset in ("overview", "help", "misspelt", "results")),
    _at_most("fit_overhead", "prop", "overhead", None, 0.05),
    _at_most("compile", "tiny", "graphs_encoder", None, 2),
    _at_most("compile", "tiny", "graphs_llm", None, 2),
    _at_most("compile", "tiny", "graphs_after_step_2", None, 0),
)
