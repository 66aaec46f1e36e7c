# make demo: install, make the sample data set, train and evaluate on it.
# make check: install, then lint, types and the fast unit tests. make test: all but the slow tests.
# Both need nothing but Python >= 3.11 and make; everything goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENV ?= sample
KILLS ?= 20
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo lint check test test-slow torture format bench notebooks viz ui constraints

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## create .venv and install the pinned dependencies

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev,notebooks,ray]'
	@touch $@

demo: install  ## make the sample data set, train and evaluate both recipes on it, and compare them
	$(BIN)/kedro run --env sample --pipelines sample_data
	$(BIN)/kedro run --env sample --params run_name=detr
	$(BIN)/kedro run --env sample --params run_name=panoptic_deeplab \
		--pipelines panoptic_deeplab_training,panoptic_deeplab_panoptic_evaluation,panoptic_deeplab_error_analysis
	$(BIN)/kedro compare --env sample detr panoptic_deeplab

lint: install
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint  ## lint, types, layers and the fast unit tests: a few minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not medium and not gpu" tests/unit

test: lint  ## lint, types, layers, all unit tests, and those of whole pipelines: several minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/unit
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/integration

test-slow: install  ## the tests that take minutes: kill and resume, Ray, several processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m slow

torture: install  ## kill the sample's job at KILLS random moments (default 20), compare the results; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --kills $(KILLS) --seed $(SEED)

format: install  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## time every benchmark beside its peer, within 15 minutes on two cores
	$(BIN)/python -m benchmarks.all

notebooks: install  ## run the notebooks on what make demo left and write them into docs/notebooks
	KEDRO_ENV=$(ENV) $(BIN)/python notebooks/render.py

viz: install  ## open the pipelines in the browser
	$(BIN)/kedro viz run --env $(ENV)

ui: install  ## open the runs in the browser
	@echo "The runs: http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

constraints: install  ## renew constraints.txt from pyproject.toml
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --strip-extras --extra dev --extra notebooks --extra ray \
		--python-version 3.11 --output-file constraints.txt --upgrade pyproject.toml
