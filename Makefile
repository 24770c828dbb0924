# Each target makes the environment it needs first: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
OUT ?= runs/demo
SEED ?= 0
BIN := .venv/bin

.PHONY: help demo test check format

help:
	@echo "make demo    the whole story on a synthetic catalogue, 2 CPU ranks, into OUT=$(OUT) with SEED=$(SEED)"
	@echo "make test    the test suite"
	@echo "make check   ruff, mypy --strict, import-linter"
	@echo "make format  ruff's formatter and fixes"

.venv/installed: pyproject.toml constraints.txt
	@echo "== installing mbsd and what it needs into .venv (about 9 GB, minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cu12,mpi,test]'
	@touch $@

demo: .venv/installed
	@echo "== mbsd demo: catalogue, two stages of pre-training, fine-tuning and evaluation into $(OUT)"
	@$(BIN)/mbsd demo --out $(OUT) --seed $(SEED)

test: .venv/installed
	@echo "== pytest"
	@$(BIN)/python -m pytest

check: .venv/installed
	@echo "== ruff, mypy --strict, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
