# make install     .venv with everything, the package itself editable
# make test        the whole test suite
# make lint        style, code checks and types
# make proofs     the slow proofs of docs/RESULTS.md: hours
# make quickstart  draw a small data set, convert, train, evaluate, show, predict
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := data model trainer tools tests setup.py msrcnn.py

RUN := runs/quickstart
SHAPES := $(RUN)/shapes
RECORDS := $(RUN)/records
# Without AVX-512 16-bit arithmetic is emulated, several times slower than float32.
PRECISION := $(shell grep -qs avx512bw /proc/cpuinfo && echo mixed_bfloat16 || echo float32)

.PHONY: help install test lint proofs quickstart

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

$(STAMP): requirements.lock setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

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
	$(BIN)/python tools/predict.py --model=$(RUN) --input='$(SHAPES)/val/*0.*' \
	  --output_dir=$(RUN)/predictions
	@echo
	@echo "Done. Open $(RUN)/samples/*.png: ground truth on the left, prediction on the right,"
	@echo "each with its box score, mask IoU and mask score. The numbers above are in"
	@echo "$(RUN)/metrics.json, the losses in $(RUN)/train.jsonl. What the trained model finds"
	@echo "in pictures alone is drawn in $(RUN)/predictions/*.png. For photographs of yours:"
	@echo "  $(BIN)/python tools/predict.py --model=$(RUN) --input=FILES --output_dir=found"
