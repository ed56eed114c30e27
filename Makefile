# Daily commands. Each sets up what it needs in .venv; a machine needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0

.PHONY: sandbox test test-fast style benchmark clean

# See the method work: scenes, two students, a table and a picture in runs/sandbox. No download.
sandbox: $(VENV)/figures.stamp
	$(BIN)/python -m training.sandbox.scenes --output runs/sandbox/data
	for seed in $(SEEDS); do \
	  $(BIN)/python -m training.train training/recipes/sandbox.yaml --seed $$seed \
	    --output_dir runs/sandbox/densevlm-seed$$seed || exit 1; \
	  $(BIN)/python -m training.train training/recipes/sandbox.yaml --seed $$seed --contrast all \
	    --output_dir runs/sandbox/all-seed$$seed || exit 1; \
	done
	$(BIN)/python -m evaluation.sandbox --runs runs/sandbox --seeds $(SEEDS)

test: $(VENV)/all.stamp
	$(BIN)/python -m pytest

test-fast: $(VENV)/all.stamp
	$(BIN)/python -m pytest -m "not slow"

style: $(VENV)/all.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

benchmark: $(VENV)/all.stamp
	$(BIN)/python -m benchmarks.region_pooling
	$(BIN)/python -m benchmarks.dense_features

clean:
	rm -rf $(VENV) runs *.egg-info

$(VENV)/figures.stamp: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[figures]"
	touch $@

$(VENV)/all.stamp: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[all]"
	touch $@
