"""HTML report of a run or a study, in one self-contained file.

    auris report run=runs/demo/qwen2_audio/seed_0
    auris report study=demo

The page shows scores with intervals, confusion matrices, and the rows with the worst scores together with their audio.
If the metric is a word or character error rate, each response is shown aligned with its reference.

All content comes from files that evaluations wrote (see `auris.results` and `auris.evaluation.answer_cache`). No model
is loaded, and no score is computed again.
"""
