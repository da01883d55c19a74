# make demo | test | lab | book | readme | clean. Each makes .venv on first use; Python 3.11+ and make are all that is needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lab speedrun book play screenshots export readme audit clean distclean
.DELETE_ON_ERROR:

BIN := .venv/bin
RUN := .venv/.ready-run
DEV := .venv/.ready-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/'

$(BIN)/python:
	@for p in $(PYTHON) python3.11 python3 python3.12 python3.13; do \
	  if command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then echo "making .venv with $$($$p --version)"; exec $$p -m venv .venv; fi; done; \
	echo "no Python 3.11 or newer with venv found: install one, or say make PYTHON=/path/to/python" >&2; exit 1

# what the package needs to run
$(RUN): settings.ini setup.py constraints.txt | $(BIN)/python
	$(PIP) setuptools wheel
	$(PIP) torch==2.13.0
	$(PIP) --no-build-isolation -e .
	@touch $@

# and what the book and the tests need
$(DEV): $(RUN)
	$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(RUN)  ## outputs/demo.mp4 (with sound) and outputs/demo.png from data/samples
	$(BIN)/liveavatar-nb generate --preset nano --audio data/samples/hello.wav --image data/samples/ada.png --text "calm, smiling" --outdir outputs

test: $(DEV)  ## every test there is
	$(BIN)/python tools/check_sync.py
	$(BIN)/python tools/mkreadme.py --check
	OMP_NUM_THREADS=1 timeout -k 10 2700 $(BIN)/nbdev_test --n_workers 2 --timing --do_print
	$(BIN)/python tools/check_wheel.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

speedrun: $(RUN)  ## train everything at pico size from nothing, eight hours on two cores: results/speedrun.json
	$(BIN)/liveavatar-nb bench speedrun --json results/speedrun.json

lab: $(DEV)  ## open the book in JupyterLab, at the live demo
	$(BIN)/jupyter lab nbs/91_demo.ipynb

# its own environment: Sphinx wants older versions of what the notebooks run with
.venv-book/.ready: constraints-book.txt | $(BIN)/python
	$(BIN)/python -m venv .venv-book
	.venv-book/bin/python -m pip install --disable-pip-version-check -q --no-compile -c constraints-book.txt jupyter-book==1.0.4.post1 sphinx-mathjax-offline
	@touch $@

book: .venv-book/.ready  ## the chapters as web pages: _book/index.html (runs none of them)
	@if [ ! -f play/dist/index.html ] && command -v npm >/dev/null; then $(MAKE) play; fi
	.venv-book/bin/python tools/mkbook.py

play: $(DEV)  ## play/dist: the page that needs no Python (npm is needed to make it); serves it until Ctrl+C with SERVE=1
	$(BIN)/python play/build.py
	@if [ -n "$(SERVE)" ]; then $(BIN)/python play/serve.py; fi

screenshots: $(DEV)  ## docs/screenshots, by a real browser; --check says when they are older than the weights
	$(BIN)/python tools/screenshots.py

export: $(DEV)  ## notebooks -> package
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: $(DEV)  ## nbs/index.ipynb -> README.md, results/ -> docs/results.md
	$(BIN)/python tools/mkreadme.py
	$(BIN)/python tools/mkresults.py

audit: $(DEV)  ## known holes in the pinned packages (without the network it says so)
	@$(PIP) pip-audit || true
	$(BIN)/python tools/audit.py

clean:  ## remove what was built (keeps .venv and .venv-book)
	rm -rf build dist *.egg-info outputs _proc _docs _book .pytest_cache

distclean: clean  ## also remove .venv and .venv-book
	rm -rf .venv .venv-book
