# Every target is the line that CI runs. `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
CONFIG ?= configs/pretrain/demo.yaml
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo smoke test test-slow check format golden docs fit clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv from constraints.txt

$(VENV)/.installed: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## synthetic patients to a trained, tested model and runs/demo/report.html (8 minutes on 2 cores)
	$(BIN)/ctgrounding phantom --patients 480 --voxel_mm 5.5 --format nifti --split '[0.62, 0.02, 0.36]' --output $(RUN)/patients
	$(BIN)/ctgrounding ingest --card data_manifests/phantom.yaml --root $(RUN)/patients --output $(RUN)/shards --spacing_mm '[8, 8, 8]'
	$(BIN)/ctgrounding fit --config configs/pretrain/demo.yaml --trainer.default_root_dir $(RUN)
	$(BIN)/ctgrounding test --config configs/pretrain/demo.yaml --trainer.default_root_dir $(RUN)
	@echo "Open $(RUN)/report.html"

smoke: install ## the whole path on a handful of tiny scans (60 seconds)
	$(BIN)/ctgrounding phantom --patients 12 --voxel_mm 12 --output runs/smoke/patients
	$(BIN)/ctgrounding ingest --card data_manifests/phantom.yaml --root runs/smoke/patients --output runs/smoke/shards --spacing_mm '[12, 16, 16]'
	$(BIN)/ctgrounding fit --config configs/pretrain/smoke.yaml
	$(BIN)/ctgrounding test --config configs/pretrain/smoke.yaml

test: install ## the fast tests (15 minutes on 2 cores at most)
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not slow and not cuda" $(ARGS)

test-slow: install ## demo, long fits, kill and resume
	$(BIN)/python -m pytest -q -m "slow and not cuda" $(ARGS)

check: install ## ruff, formatting, mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: install ## refresh the golden losses; explain the diff where you commit it
	$(BIN)/python -m pytest -q tests/golden --refresh-golden

docs: install ## build the documentation
	$(BIN)/mkdocs build --strict

fit: install ## train: make fit CONFIG=configs/pretrain/phantom.yaml ARGS="--trainer.max_epochs 2"
	$(BIN)/ctgrounding fit --config $(CONFIG) $(ARGS)

clean: ## remove build products, not runs
	rm -rf dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
