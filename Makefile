# Common commands. Each installs its requirements into .venv; needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0
PRETRAINING_SEEDS ?= 0 1 2

.PHONY: sandbox sandbox-pretraining test test-slow test-core style benchmark gpu clean

# The method on synthetic scenes: two students, a table, figures and a page in runs/sandbox. No download.
TEACHER_CACHE := --teacher_cache runs/sandbox/teacher_cache
STEP = @echo; echo "make sandbox, step $(1) of 5 (about $(2) on two cores): $(3)"
sandbox: $(VENV)/figures.stamp
	$(call STEP,1,1 minute,drawing the scenes)
	$(BIN)/python -m training.sandbox.scenes --output runs/sandbox/data
	$(call STEP,2,1 minute,the teacher names the regions of every training scene)
	$(BIN)/python -m training.cache_teacher training/recipes/sandbox.yaml $(TEACHER_CACHE)
	$(call STEP,3,2 minutes a seed,training DenseVLM)
	for seed in $(SEEDS); do \
	  $(BIN)/python -m training.train training/recipes/sandbox.yaml $(TEACHER_CACHE) --seed $$seed \
	    --output_dir runs/sandbox/densevlm-seed$$seed || exit 1; \
	done
	$(call STEP,4,2 minutes a seed,training without its decoupled contrast)
	for seed in $(SEEDS); do \
	  $(BIN)/python -m training.train training/recipes/sandbox.yaml $(TEACHER_CACHE) --seed $$seed --contrast all \
	    --output_dir runs/sandbox/all-seed$$seed || exit 1; \
	done
	$(call STEP,5,1 minute,evaluating all models on the test scenes)
	$(BIN)/python -m evaluation.sandbox --runs runs/sandbox --seeds $(SEEDS)

# The same over several pre-training seeds, starting from captions: hours. Seed 0 uses the shipped models. Existing results are reused.
#   nohup make sandbox-pretraining > pretraining.log &
PRETRAINED := $(PRETRAINING_SEEDS:%=runs/pretraining-%)
ALIGNED := $(foreach run,$(PRETRAINED),$(run)/densevlm-seed0 $(run)/all-seed0)
sandbox-pretraining: $(ALIGNED:%=%/model.safetensors)
	$(BIN)/python -m evaluation.sandbox --runs $(PRETRAINED) --data runs/sandbox/data --output runs/pretraining

MODELS := runs/pretraining-%/models
PRETRAIN := $(BIN)/python -m training.sandbox.pretrain
CLIPSELF := $(BIN)/python -m training.train training/recipes/sandbox_clipself.yaml
DENSEVLM := $(BIN)/python -m training.train training/recipes/sandbox.yaml
# Intermediate models are preserved, and trained one at a time.
.SECONDARY:
.NOTPARALLEL:
.DELETE_ON_ERROR:

runs/sandbox/data/categories.json: | $(VENV)/figures.stamp
	$(BIN)/python -m training.sandbox.scenes --output runs/sandbox/data

$(foreach name,u p clipself-u,runs/pretraining-0/models/densevlm-sandbox-$(name)/model.safetensors):
	mkdir -p runs/pretraining-0/models
	cp -r model_cards/$(notdir $(@D)) runs/pretraining-0/models

$(MODELS)/densevlm-sandbox-u/model.safetensors: | runs/sandbox/data/categories.json
	$(PRETRAIN) U --seed $* --output $(@D)

$(MODELS)/p-of-captions/model.safetensors: | runs/sandbox/data/categories.json
	$(PRETRAIN) P --seed $* --output $(@D)

$(MODELS)/densevlm-sandbox-clipself-u/model.safetensors: $(MODELS)/densevlm-sandbox-u/model.safetensors
	$(CLIPSELF) --model $(<D) --seed $* --output_dir $(@D)

$(MODELS)/densevlm-sandbox-p/model.safetensors: $(MODELS)/p-of-captions/model.safetensors
	$(CLIPSELF) --model $(<D) --image_size 144 --seed $* --output_dir $(@D)

ALIGN = $(DENSEVLM) --seed 0 --output_dir $(@D) \
  --model runs/pretraining-$*/models/densevlm-sandbox-u --teacher runs/pretraining-$*/models/densevlm-sandbox-p
READY := $(foreach name,u p clipself-u,$(MODELS)/densevlm-sandbox-$(name)/model.safetensors)

runs/pretraining-%/densevlm-seed0/model.safetensors: $(READY) | runs/sandbox/data/categories.json
	$(ALIGN)

runs/pretraining-%/all-seed0/model.safetensors: $(READY) | runs/sandbox/data/categories.json
	$(ALIGN) --contrast all

test: $(VENV)/all.stamp
	$(PYTEST) -m "not slow"

# Ten kills at random times, COCO images, full-size models.
test-slow: $(VENV)/all.stamp
	$(PYTEST) -m slow

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

# Without any extra: no timm, torchvision or matplotlib. Tests that need them are skipped with a reason.
test-core: $(VENV)-core/test.stamp
	$(VENV)-core/bin/python -m pytest --numprocesses auto -m "not slow" tests/modeling_densevlm tests/golden tests/evaluation \
	  tests/test_house.py tests/test_pairs.py

style: $(VENV)/all.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

benchmark: $(VENV)/all.stamp
	$(BIN)/python -m benchmarks.region_pooling
	$(BIN)/python -m benchmarks.dense_features
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.teacher_cache
	$(BIN)/python -m benchmarks.evaluation

# For a machine with one CUDA GPU and no network, six minutes: docs/gpu.md. DEVICE=cpu checks that everything runs.
DEVICE ?= cuda
OUT ?= runs/gpu
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu --device $(DEVICE) --output $(OUT) $(if $(WHEELS),--wheels $(WHEELS))

clean:
	rm -rf $(VENV) $(VENV)-core $(VENV)-gpu runs *.egg-info

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
