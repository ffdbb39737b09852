# auris: every target sets up what it needs. `make help` lists them.
VENV   ?= .venv
PYTHON ?= python3
RUNS   ?= runs
# Runs of the demo side by side: three keep two cores busy, as the three stages differ in length.
JOBS   ?= 3
# Processes that run tests side by side, a file each.
TESTERS ?= 2
STUDY  ?= demo
# Environments of `make test-matrix`, 6 GB each.
MATRIX ?= .cache/matrix
# Their versions and their Python. Cells: the lowest and the highest versions that pyproject.toml allows.
CELLS  ?= lowest-python3.11 highest-python3.11 lowest-python3.12 highest-python3.12

COMPILED_TESTS := tests/model/test_compiled.py

PY     := $(VENV)/bin/python
PINS   := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
STAMP  := $(VENV)/.auris-$(PINS)
# The checkout that make runs in wins over whichever one the environment was made from.
export PYTHONPATH := $(CURDIR)/src
# Bytecode is kept, whatever the shell says: without it every start of Python compiles torch anew, 13 s.
unexport PYTHONDONTWRITEBYTECODE
# Before torch is imported: the demo and the tests run several processes on few cores.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup constraints demo real test test-matrix test-portable test-slow test-wheel lint format tensorboard bench

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  Variables: VENV=$(VENV) PYTHON=$(PYTHON) JOBS=$(JOBS) TESTERS=$(TESTERS)"

$(STAMP):
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.auris-*
	@touch $@

setup: $(STAMP)  ## make the virtual environment with the pinned versions (nothing to do when nothing changed)

# Pins that still satisfy pyproject.toml stay; delete a line of constraints.txt, or all of it, to have newer versions.
COMPILE := uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-annotate --no-header --quiet
constraints:  ## pin the versions of all dependencies of development in constraints*.txt (needs uv)
	@touch constraints.txt
	$(COMPILE) -o constraints.txt
	@sed -i '1i # Exact versions of a development environment: make setup passes this file to pip (-c). Made by `make constraints`.' constraints.txt
	$(COMPILE) --resolution lowest-direct -o constraints-lowest.txt
	@sed -i '1i # The lowest versions that pyproject.toml allows, for `make test-matrix`. Made by `make constraints`.' constraints-lowest.txt

demo: setup  ## train Qwen-Audio and Qwen2-Audio at tiny scale and compare them: a table and figures in runs/demo
	$(PY) -m auris corpus out=corpora/embedded
	$(PY) -m auris train ablations=demo jobs=$(JOBS)
	$(PY) -m auris results study=demo

# Encoder, language model and, for comparison, what the encoder's own decoder says to the test rows.
ENCODER     ?= $(WEIGHTS)/whisper-base
LLM         ?= $(WEIGHTS)/smollm2-135m-instruct
TRANSCRIPTS ?= $(ENCODER)/reference_transcripts.jsonl
ROWS        ?= corpora/real
TEXT        ?= corpora/sampled
real: setup  ## WEIGHTS=DIR DATA=DIR: teach SmolLM2 to hear real speech with Whisper's encoder (first version, not yet run as a whole)
	@for model in "$(ENCODER)" "$(LLM)"; do ls "$$model"/LICENSE* > /dev/null 2>&1 || { \
	  echo "error: $$model: expected the directory of a model with its licence (LICENSE*): set WEIGHTS=DIR, or ENCODER=DIR and LLM=DIR"; exit 2; }; done
	@test -d "$(DATA)" || { echo "error: DATA=$(DATA): expected a folder of recordings with manifests (NAME.train.jsonl, NAME.test.jsonl)"; exit 2; }
	test -e $(ROWS)/train.jsonl || $(PY) -m auris prepare layout=manifest root="$(DATA)" out=$(ROWS) \
	  layout.files='*.train.jsonl' 'layout.only={task: [asr], language: [en]}' layout.valid_share=0.1
	test -e $(ROWS)/asterisk.test.jsonl || $(PY) -m auris prepare layout=manifest root="$(DATA)" out=$(ROWS)/asterisk.test.jsonl \
	  layout.files=asterisk.test.jsonl 'layout.only={language: [en]}'
	test -e $(TEXT)/text.txt || $(PY) -m auris corpus llm="$(LLM)" sentences=400 out=$(TEXT)
	$(PY) -m auris train ablations=real vars.encoder="$(ENCODER)" vars.llm="$(LLM)" vars.rows=$(ROWS) vars.text=$(TEXT) vars.data="$(DATA)" \
	  vars.transcripts="$(TRANSCRIPTS)"
	$(PY) -m auris results study=real

# Files in their order: by their numbers of tests, the longest one, of few tests, would come last.
# The probes of slipcover in code objects break torch.compile, so the tests of compiled blocks run without coverage.
test: setup  ## run the tests (offline, CPU) and print the coverage
	@mkdir -p .cache
	@$(PY) -m pytest $(COMPILED_TESTS) & compiled=$$!; \
	$(PY) -m slipcover -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder --ignore $(COMPILED_TESTS); code=$$?; \
	wait $$compiled && exit $$code
	@$(PY) -c "import json; print('coverage of src/auris: {percent_covered:.1f} % of its lines (.cache/coverage.json)'.format(**json.load(open('.cache/coverage.json'))['summary']))"

# Rounding differs between instruction sets and thread counts: no test may depend on it. About six times `make test`.
# Threads that wait sleep (PASSIVE), because several processes share the cores.
test-portable: setup  ## run the tests under three instruction sets, with 1 and 2 threads each
	@failed=; for set in default avx2 best; do for threads in 1 2; do \
	  case $$set in \
	    default) limits="ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2" ;; \
	    avx2) limits="ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2" ;; \
	    best) limits= ;; \
	  esac; \
	  echo "== instruction set: $$set, threads: $$threads =="; \
	  env $$limits OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder \
	    || failed="$$failed $$set/$$threads"; \
	done; done; \
	if [ -n "$$failed" ]; then echo "failed under (instruction set/threads):$$failed"; exit 1; fi

test-matrix:  ## run the tests with the lowest and highest allowed versions, in environments in MATRIX
	@failed=; for cell in $(CELLS); do \
	  echo "== $$cell =="; $(MAKE) --no-print-directory test-with-$$cell || failed="$$failed $$cell"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed with:$$failed"; exit 1; fi

# One cell of the matrix, such as `make test-with-lowest-python3.11`.
PINS_lowest  := -c constraints-lowest.txt
PINS_highest := --upgrade --upgrade-strategy eager
test-with-%:
	$(lastword $(subst -, ,$*)) -m venv $(MATRIX)/$*
	$(MATRIX)/$*/bin/pip install --quiet --disable-pip-version-check $(PINS_$(firstword $(subst -, ,$*))) -e '.[dev]'
	$(MATRIX)/$*/bin/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-slow: setup  ## run the longer proofs
	$(PY) -m pytest -m slow

WHEEL := build/wheel
test-wheel:  ## build the wheel, install it into an empty environment and use it outside the checkout
	rm -rf $(WHEEL) && $(PYTHON) -m venv $(WHEEL)/env
	$(WHEEL)/env/bin/pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(WHEEL)/env/bin/pip install --quiet -c constraints.txt $(WHEEL)/auris-*.whl
	cd $(WHEEL) && unset PYTHONPATH && env/bin/auris --version && env/bin/auris train --help > help.txt \
	  && env/bin/auris doctor show=srwt && env/bin/auris train scale=tiny dry_run=true 2> error.txt; test $$? -eq 1 \
	  && grep "there is no file" error.txt
	cd $(WHEEL) && unset PYTHONPATH && env/bin/auris results study=none 2> error.txt; grep "auris\[reports\]" error.txt

lint: setup  ## ruff, types (pyrefly), codespell and the contracts of the layers (import-linter)
	$(PY) -m ruff check src tests benchmarks
	$(PY) -m ruff format --check src tests benchmarks
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PY)
	$(VENV)/bin/codespell src tests benchmarks configs ablations scripts docs *.md
	$(VENV)/bin/lint-imports --no-logo --cache-dir .cache/import-linter

format: setup  ## ruff: apply the format
	$(PY) -m ruff check --fix src tests benchmarks
	$(PY) -m ruff format src tests benchmarks

tensorboard: setup  ## TensorBoard of a study: make tensorboard STUDY=demo (curves of all arms; HPARAMS compares them)
	-$(PY) -m auris results study=$(STUDY) runs=$(RUNS)
	$(VENV)/bin/tensorboard --logdir $(RUNS)/$(STUDY)

bench: setup  ## speed against named peers, as ratios
	$(PY) -m benchmarks
