"""HTML report of a run or a study, in one self-contained file.

    auris report run=runs/demo/qwen2_audio/seed_0
    auris report study=demo

The page has scores with intervals, confusion matrices, and the worst rows with their audio. If words or characters are
counted, each response is aligned with its reference.

It is built from the files of the evaluations (`auris.results`, `auris.evaluation.answer_cache`). No model is loaded and
nothing is scored again.
"""
