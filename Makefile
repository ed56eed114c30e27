# Common commands. Each installs its requirements into .venv; needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0
PRETRAINING_SEEDS ?= 0 1 2

.PHONY: sandbox sandbox-pretraining test test-slow test-core style docs benchmark gpu clean

# The method on synthetic scenes: two students, a table, figures and a page in runs/sandbox. No download.
TEACHER_CACHE := --teacher_cache runs/sandbox/teacher_cache
STEP = @echo; echo "make sandbox, step $(1) of 5 (about $(2) on two cores): $(3)"
sandbox: $(VENV)/figures.stamp
	$(call STEP,1,1 minute,drawing the scenes)
	$(BIN)/python -m training.sandbox.scenes --output runs/sandbox/data
	$(call STEP,2,1 minute,the teacher names the regions of every training scene)
	$(BIN)/python -m training.cache_teacher training/recipes/sandbox.yaml $(TEACHER_CACHE)
	$(call STEP,3,2 minutes a seed,training DenseVLM)
	rm -rf $(SEEDS:%=runs/sandbox/densevlm-seed%)
	for seed in $(SEEDS); do \
	  $(BIN)/python -m training.train training/recipes/sandbox.yaml $(TEACHER_CACHE) --seed $$seed \
	    --output_dir runs/sandbox/densevlm-seed$$seed || exit 1; \
	done
	$(call STEP,4,2 minutes a seed,training without its decoupled contrast)
	rm -rf $(SEEDS:%=runs/sandbox/all-seed%)
	for seed in $(SEEDS); do \
	  $(BIN)/python -m training.train training/recipes/sandbox.yaml $(TEACHER_CACHE) --seed $$seed --contrast all \
	    --output_dir runs/sandbox/all-seed$$seed || exit 1; \
	done
	$(call STEP,5,1 minute,evaluating all models on the test scenes)
	$(BIN)/python -m evaluation.sandbox --runs runs/sandbox --seeds $(SEEDS)

# The same over three pre-trainings with three alignments each, starting from captions: hours. Seed 0 uses the shipped
# models. What is there is reused; pre-trainings and alignments that were stopped continue.
#   nohup make sandbox-pretraining > pretraining.log &
ALIGNMENT_SEEDS ?= 0 1 2
PRETRAINED := $(PRETRAINING_SEEDS:%=runs/pretraining-%)
ALIGNED := $(foreach run,$(PRETRAINED),$(foreach seed,$(ALIGNMENT_SEEDS),$(run)/densevlm-seed$(seed) $(run)/all-seed$(seed)))
sandbox-pretraining: $(ALIGNED:%=%/model.safetensors)
	$(BIN)/python -m evaluation.sandbox --runs $(PRETRAINED) --seeds $(ALIGNMENT_SEEDS) --data runs/sandbox/data \
	  --output runs/pretraining

MODELS := runs/pretraining-%/models
PRETRAIN := $(BIN)/python -m training.sandbox.pretrain
CLIPSELF := $(BIN)/python -m training.train training/recipes/sandbox_clipself.yaml
# Intermediate models are preserved, and trained one at a time.
.SECONDARY:
.NOTPARALLEL:
.DELETE_ON_ERROR:

runs/sandbox/data/categories.json: | $(VENV)/figures.stamp
	$(BIN)/python -m training.sandbox.scenes --output runs/sandbox/data

$(foreach name,u p clipself-u,runs/pretraining-0/models/densevlm-sandbox-$(name)/model.safetensors):
	mkdir -p runs/pretraining-0/models
	cp -r model_cards/$(notdir $(@D)) runs/pretraining-0/models

$(MODELS)/densevlm-sandbox-u/model.safetensors: | $(VENV)/all.stamp runs/sandbox/data/categories.json
	$(PRETRAIN) U --seed $* --output $(@D)

$(MODELS)/p-of-captions/model.safetensors: | $(VENV)/all.stamp runs/sandbox/data/categories.json
	$(PRETRAIN) P --seed $* --output $(@D)

$(MODELS)/densevlm-sandbox-clipself-u/model.safetensors: $(MODELS)/densevlm-sandbox-u/model.safetensors
	$(CLIPSELF) --model $(<D) --seed $* --output_dir $(@D)

$(MODELS)/densevlm-sandbox-p/model.safetensors: $(MODELS)/p-of-captions/model.safetensors
	$(CLIPSELF) --model $(<D) --image_size 144 --image_weight 1 --learning_rate 1e-3 --seed $* --output_dir $(@D)

READY := $(foreach name,u p clipself-u,$(MODELS)/densevlm-sandbox-$(name)/model.safetensors)
ALIGN = training/recipes/sandbox.yaml --teacher_cache runs/pretraining-$*/teacher_cache \
  --model runs/pretraining-$*/models/densevlm-sandbox-u --teacher runs/pretraining-$*/models/densevlm-sandbox-p

runs/pretraining-%/teacher_cache.stamp: $(READY) | runs/sandbox/data/categories.json
	$(BIN)/python -m training.cache_teacher $(ALIGN)
	touch $@

define ALIGNMENT
runs/pretraining-%/densevlm-seed$(1)/model.safetensors: runs/pretraining-%/teacher_cache.stamp
	$$(BIN)/python -m training.train $$(ALIGN) --resume_from_checkpoint auto --seed $(1) --output_dir $$(@D)

runs/pretraining-%/all-seed$(1)/model.safetensors: runs/pretraining-%/teacher_cache.stamp
	$$(BIN)/python -m training.train $$(ALIGN) --resume_from_checkpoint auto --seed $(1) --output_dir $$(@D) --contrast all
endef
$(foreach seed,$(ALIGNMENT_SEEDS),$(eval $(call ALIGNMENT,$(seed))))

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

# The documentation as a site in runs/site.
docs: $(VENV)/all.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: $(VENV)/all.stamp
	$(BIN)/python -m benchmarks.region_pooling
	$(BIN)/python -m benchmarks.dense_features
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.teacher_cache
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.segmentation

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
