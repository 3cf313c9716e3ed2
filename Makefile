# Each target sets itself up; the second time that takes a fraction of a second (scripts/setup.sh).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup repro verdict shift test test-slow check bench bench-gpu real constraints clean

# Where `make real` and the tests on real files look (data/ and golden/ inside); absent: those tests are skipped and say so.
export LACUNA_SHARED ?= $(abspath ../shared)
# No desktop is needed to draw, and no tool of ours reports its use to anybody.
export MPLBACKEND := Agg
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

# `dvc`, `lacuna` and `python` of this checkout, for stages that DVC starts as well.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:    ## this list
	@grep -E '^[a-z-]+: .*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup:   ## system libraries, .venv with pinned packages, this package
	@bash scripts/setup.sh

repro: setup   ## raw files to compared, registered models on the embedded sample, all four tracks, and a verdict on one
	dvc repro evaluate verdict
	lacuna compare

verdict: setup   ## the verdict alone: what pretraining on the embedded X-rays is worth in labels
	dvc repro verdict
	lacuna compare

shift: setup   ## what another hospital and damage cost on the embedded X-rays: a page
	dvc repro shift

test: setup   ## the tests, without the slow ones
	python -m pytest -q

test-slow: setup   ## the slow tests alone
	python -m pytest -q -m slow

check: setup   ## ruff and mypy
	ruff check .
	mypy

# One thread each: what else the machine does then disturbs least, and seconds are the processor's own.
bench bench-gpu: export OMP_NUM_THREADS ?= 1

bench: setup   ## speed on this machine: tables, and reports/bench/*.json; some 10 minutes, more with a GPU
	python -m benchmarks.mae_step
	python -m benchmarks.reading
	python -m benchmarks.ingest_rate
	python -m benchmarks.growth
	python -m benchmarks.point_operations
	@if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(MAKE) --no-print-directory bench-gpu; fi

bench-gpu: setup   ## speed on a GPU: samples per second and share of the matrix products' rate
	python -m benchmarks.gpu

real: setup   ## all four tracks on real files; LACUNA_SHARED names the folder
	bash examples/real/run.sh

constraints:   ## write the versions in .venv into constraints.txt, keeping its heading
	python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed -E 's/^(torch==[^+]*)\+.*/\1/' > constraints.part
	sed '/^[^#]/d' constraints.txt | cat - constraints.part > constraints.new
	rm constraints.part && mv constraints.new constraints.txt

clean:   ## remove what is made again: caches, resume state, reports, artifacts, prepared data; keeps .venv and data/raw
	rm -rf .work reports artifacts data/prepared .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
