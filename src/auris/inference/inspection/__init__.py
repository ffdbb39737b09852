"""Inside a trained model: what it hears of one row, what its pooling keeps, where its answer listens, and when words
are said. All as plain arrays, and as figures; `notebooks/03_inside_the_model` is what they look like.

    subject = inspection.load("runs/demo/qwen2_audio/seed_0")
    trace = inspection.trace_row(subject.model, inspection.choose_row(subject))
    inspection.plot_attention(trace)
"""

from auris.inference.inspection.figures import plot_attention, plot_heads, plot_pooling, plot_sound, plot_times
from auris.inference.inspection.pooling_probe import compare_poolings
from auris.inference.inspection.timing import audio_players, time_shifts, word_times
from auris.inference.inspection.trace import Subject, Trace, attention_weights, choose_row, load, trace_row

__all__ = [
    "Trace",
    "Subject",
    "attention_weights",
    "choose_row",
    "compare_poolings",
    "trace_row",
    "load",
    "audio_players",
    "plot_attention",
    "plot_heads",
    "plot_pooling",
    "plot_sound",
    "plot_times",
    "time_shifts",
    "word_times",
]
