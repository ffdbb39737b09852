"""Inside a trained model: what it hears of one row, what its pooling keeps, where its answer listens, and when words
are said. All as plain arrays, and as figures; `notebooks/03_inside_the_model` is what they look like.

    subject = inspection.load("runs/demo/qwen2_audio/seed_0")
    heard = inspection.hear(subject.model, inspection.choose(subject))
    inspection.plot_attention(heard)
"""

from auris.inference.inspection.figures import plot_attention, plot_heads, plot_pooling, plot_sound, plot_times
from auris.inference.inspection.pooling_probe import compare_poolings
from auris.inference.inspection.timing import players, shifts, timings
from auris.inference.inspection.trace import Heard, Subject, attention, choose, hear, load

__all__ = [
    "Heard",
    "Subject",
    "attention",
    "choose",
    "compare_poolings",
    "hear",
    "load",
    "players",
    "plot_attention",
    "plot_heads",
    "plot_pooling",
    "plot_sound",
    "plot_times",
    "shifts",
    "timings",
]
