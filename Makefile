# Everything happens in a virtual environment of this folder, .venv. Needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test lint types clean

help:
	@echo "make demo   install, fetch a real slide and a real aerial scene, segment both"
	@echo "make test   install with the test tools, check style and types, run all tests"
	@echo "make clean  remove .venv and demo/"

demo: .venv/.installed
	@echo "== Fetching two real samples into demo/samples"
	@$(BIN)/veca samples --out demo/samples
	@echo "== Segmenting the slide with the model nuclei"
	@$(BIN)/veca segment demo/samples/CMU-1-Small-Region.svs --model nuclei --out demo/results
	@echo "== Segmenting the aerial scene with the model aerial-landcover"
	@$(BIN)/veca segment demo/samples/OSBS_029.tif --model aerial-landcover --out demo/results
	@echo "== Done. Look at:"
	@ls demo/results/*/preview.png
	@echo "   or in a browser: $(BIN)/veca view demo"

test: .venv/.tested lint types
	@echo "== Running the tests"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/.tested
	@echo "== Checking style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: .venv/.tested
	@echo "== Checking types"
	@$(BIN)/mypy

.venv/bin/python:
	@echo "== Making a virtual environment in .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "VECA needs Python 3.11 or newer, found " + sys.version)'
	@$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "== Installing VECA and what it needs into .venv (torch is large: some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

.venv/.tested: pyproject.toml .venv/.installed
	@echo "== Installing the test tools"
	@$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv demo
