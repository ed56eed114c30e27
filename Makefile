# Daily commands. Each sets up what it needs in .venv; a machine needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0
PRETRAINING_SEEDS ?= 1 2

.PHONY: sandbox sandbox-pretraining test test-fast test-core style benchmark clean

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

# The same with other pre-trainings beside the shipped one, from captions on: hours. What is done is kept.
#   nohup make sandbox-pretraining > pretraining.log &
sandbox-pretraining: sandbox $(PRETRAINING_SEEDS:%=runs/pretraining-%/densevlm-seed0/model.safetensors) \
    $(PRETRAINING_SEEDS:%=runs/pretraining-%/all-seed0/model.safetensors)
	$(BIN)/python -m evaluation.sandbox --runs runs/sandbox $(PRETRAINING_SEEDS:%=runs/pretraining-%) --seeds 0 \
	  --output runs/pretraining

# Models on the way are kept; one that needs another waits for it.
.SECONDARY:
.NOTPARALLEL:
MODELS := runs/pretraining-%/models
CLIPSELF := training/recipes/sandbox_clipself.yaml

$(MODELS)/densevlm-sandbox-u/model.safetensors: | $(VENV)/figures.stamp
	$(BIN)/python -m training.sandbox.pretrain U --seed $* --output $(@D)

$(MODELS)/p-of-captions/model.safetensors: | $(VENV)/figures.stamp
	$(BIN)/python -m training.sandbox.pretrain P --seed $* --output $(@D)

$(MODELS)/densevlm-sandbox-clipself-u/model.safetensors: $(MODELS)/densevlm-sandbox-u/model.safetensors
	$(BIN)/python -m training.train $(CLIPSELF) --model $(<D) --seed $* --output_dir $(@D)

$(MODELS)/densevlm-sandbox-p/model.safetensors: $(MODELS)/p-of-captions/model.safetensors
	$(BIN)/python -m training.train $(CLIPSELF) --model $(<D) --seed $* --output_dir $(@D)

runs/pretraining-%/densevlm-seed0/model.safetensors: $(MODELS)/densevlm-sandbox-u/model.safetensors \
    $(MODELS)/densevlm-sandbox-p/model.safetensors $(MODELS)/densevlm-sandbox-clipself-u/model.safetensors
	$(BIN)/python -m training.train training/recipes/sandbox.yaml --model $(<D) --output_dir $(@D) \
	  --teacher runs/pretraining-$*/models/densevlm-sandbox-p

runs/pretraining-%/all-seed0/model.safetensors: $(MODELS)/densevlm-sandbox-u/model.safetensors \
    $(MODELS)/densevlm-sandbox-p/model.safetensors
	$(BIN)/python -m training.train training/recipes/sandbox.yaml --model $(<D) --output_dir $(@D) \
	  --teacher runs/pretraining-$*/models/densevlm-sandbox-p --contrast all

test: $(VENV)/all.stamp
	$(BIN)/python -m pytest

test-fast: $(VENV)/all.stamp
	$(BIN)/python -m pytest -m "not slow"

# Without any extra: neither timm nor torchvision nor matplotlib. What needs them is skipped and says so.
test-core: $(VENV)-core/test.stamp
	$(VENV)-core/bin/python -m pytest -m "not slow" tests/modeling_densevlm tests/golden tests/evaluation \
	  tests/test_house.py tests/test_pairs.py

style: $(VENV)/all.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

benchmark: $(VENV)/all.stamp
	$(BIN)/python -m benchmarks.region_pooling
	$(BIN)/python -m benchmarks.dense_features
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.kept_answers
	$(BIN)/python -m benchmarks.evaluation

clean:
	rm -rf $(VENV) $(VENV)-core runs *.egg-info

$(VENV)/figures.stamp: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[figures]"
	touch $@

$(VENV)-core/test.stamp: setup.cfg pyproject.toml
	test -d $(VENV)-core || $(PYTHON) -m venv $(VENV)-core
	$(VENV)-core/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-core/bin/python -m pip install --quiet -e ".[test]"
	touch $@

$(VENV)/all.stamp: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[all]"
	touch $@
