# make install         create .venv with all dependencies and the packages in editable mode
# make install-extras  add the optional packages: LiteRT, OpenVINO, JAX, the demo page, test tools
# make test            run the whole test suite; tests of packages that are missing are skipped
# make lint            check style, code and types
# make proofs          run the slow checks of docs/RESULTS.md (hours)
# make quickstart      generate a small synthetic dataset, convert, train, evaluate, export, predict
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS_STAMP := $(VENV)/.installed-extras
ROOMS := data model trainer tools tests setup.py msrcnn.py

RUN := runs/quickstart
SHAPES := $(RUN)/shapes
RECORDS := $(RUN)/records
# Without AVX-512, 16-bit arithmetic is emulated and several times slower than float32.
PRECISION := $(shell grep -qs avx512bw /proc/cpuinfo && echo mixed_bfloat16 || echo float32)

.PHONY: help install install-extras test lint proofs quickstart

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(STAMP)

$(STAMP): requirements.lock setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

install-extras: $(EXTRAS_STAMP)

$(EXTRAS_STAMP): requirements-extras.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-extras.lock
	touch $(EXTRAS_STAMP)

test: install
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/ruff format --check $(ROOMS)
	$(BIN)/mypy

proofs: install
	$(BIN)/python -m pytest -m proof tests/proofs $(PYTEST_ARGS)

quickstart: install
	$(BIN)/python tools/draw_shapes.py --output_dir=$(SHAPES) --num_train=300 --num_val=60
	for split in train val; do \
	  $(BIN)/python tools/create_coco_tfrecord.py --image_dir=$(SHAPES)/$$split \
	    --object_annotations_file=$(SHAPES)/annotations/$$split.json \
	    --output_file_prefix=$(RECORDS)/$$split --num_shards=2 || exit 1; \
	done
	$(BIN)/python -m trainer.main --flagfile=configs/quickstart.flags --mode=train_and_eval \
	  --precision=$(PRECISION) \
	  --model_dir=$(RUN) --train_file_pattern='$(RECORDS)/train-*.tfrecord' \
	  --eval_file_pattern='$(RECORDS)/val-*.tfrecord' \
	  --eval_annotation_file=$(SHAPES)/annotations/val.json
	$(BIN)/python tools/write_samples.py --results_dir=$(RUN)/eval \
	  --image_dir=$(SHAPES)/val --object_annotations_file=$(SHAPES)/annotations/val.json \
	  --output_dir=$(RUN)/samples
	cp $(RUN)/eval/metrics.json $(RUN)/metrics.json
	$(BIN)/python -m trainer.main --mode=export --model_dir=$(RUN)
	$(BIN)/python tools/predict.py --model=$(RUN)/export/saved_model \
	  --input='$(SHAPES)/val/*0.*' --output_dir=$(RUN)/predictions
	@echo
	@echo "Done. What to open next:"
	@echo "  $(RUN)/samples/*.png      ground truth on the left, predictions on the right, each"
	@echo "    object with its box score, mask IoU and mask score"
	@echo "  $(RUN)/export/saved_model the trained model, for TF Serving or plain TensorFlow"
	@echo "  $(RUN)/predictions/*.png  predictions of that export for a few images"
	@echo "  $(RUN)/metrics.json       the metrics printed above"
	@echo "  $(RUN)/train.jsonl        the losses"
	@echo "To predict on your own images:"
	@echo "  $(BIN)/python tools/predict.py --model=$(RUN) --input=FILES --output_dir=found"
