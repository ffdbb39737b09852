"""Inspect what a trained model computes for one row, as plain arrays and as figures.

The figures show the features and frames of the audio, the information that pooling keeps, the attention of the response
to the audio, and the times of words. `notebooks/03_inside_the_model` contains all figures.

    subject = inspection.load("runs/demo/qwen2_audio/seed_0")
    trace = inspection.trace_row(subject.model, inspection.choose_row(subject))
    inspection.plot_attention(trace)
"""

from auris.inference.inspection.figures import plot_attention, plot_heads, plot_pooling, plot_sound, plot_times
from auris.inference.inspection.pooling_probe import compare_poolings
from auris.inference.inspection.timing import audio_players, time_shifts, word_times
from auris.inference.inspection.trace import Subject, Trace, attention_weights, choose_row, load, trace_row

__all__ = [
    "Subject",
    "Trace",
    "attention_weights",
    "audio_players",
    "choose_row",
    "compare_poolings",
    "load",
    "plot_attention",
    "plot_heads",
    "plot_pooling",
    "plot_sound",
    "plot_times",
    "time_shifts",
    "trace_row",
    "word_times",
]
