"""A run or a study as one HTML page that needs nothing else: scores with intervals, confusion matrices, the worst rows
with their sound and, where words or characters are counted, what was said against what is true.

    auris report run=runs/demo/qwen2_audio/seed_0
    auris report study=demo

It reads what evaluations have left (`auris.results`, `auris.evaluation.answer_cache`); no model is loaded and nothing
is scored again.
"""
