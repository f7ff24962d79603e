# The front door. Each target sets up .venv by itself, once; make help lists them.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Stands while the set-up is under way: where it is found, a set-up was cut off and starts from nothing.
UNDERWAY := $(VENV)/.installing

.DEFAULT_GOAL := help
.PHONY: help run check test lab site links gallery notebooks clean

help:  ## say this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/' | expand -t 16
	@echo 'more words for the command go into ARGS, as in: make run ARGS="--preset mnist --seeds 0,1,2"'

run: $(STAMP)  ## execute the notebooks into a new folder below outputs/runs
	@$(BIN)/python -m lowrank_utils run $(ARGS)

check: $(STAMP)  ## look at a change in a minute and a half: style, floors, types, the quick tests
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m basedpyright --pythonpath $(BIN)/python
	@$(BIN)/python -m pytest -m "not slow and not notebook and not browser" tests lowrank_utils $(ARGS)

test: $(STAMP)  ## check everything: units, docstrings, every notebook against its stored outputs, pages in a browser
	@$(BIN)/python -m lowrank_utils data fashion-mnist
	@$(BIN)/python -m lowrank_utils data smollm2-135m
	@$(BIN)/python -m lowrank_utils data efficientnet-lite0
	@$(BIN)/python -m pytest $(ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(BIN)/python -m jupyterlab $(ARGS) notebooks

site: $(STAMP)  ## build the pages of notebooks and gallery, to be read without a network, in outputs/site
	@$(BIN)/python -m lowrank_utils report --site $(ARGS)

links: $(STAMP)  ## write Colab and Binder badges for the copy REPO=owner/name; without REPO take them out
	@$(BIN)/python -m lowrank_utils links $(REPO)

gallery: $(STAMP)  ## measure every published number whose rows are not there, and write the gallery; ARGS=--list shows the jobs
	@$(BIN)/python -m lowrank_utils gallery $(ARGS)

notebooks: $(STAMP)  ## execute the notebooks and solutions in place, at their defaults
	@$(BIN)/python -m lowrank_utils refresh $(ARGS)
	@$(BIN)/python -m lowrank_utils twins

clean:  ## remove what make made; data and outputs/gallery stay
	rm -rf $(VENV) outputs/runs outputs/sweeps outputs/site outputs/.site-build build *.egg-info .pytest_cache .hypothesis .benchmarks .ruff_cache .import_linter_cache
	find . -name data -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'error: "$(PYTHON)" is not Python 3.11 or newer; name one that is, as in: make PYTHON=python3.12 run' >&2; \
		exit 1; }
	@if [ -e $(UNDERWAY) ]; then echo 'the last set-up was cut off, starting it again'; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNDERWAY)
	@echo 'setting up $(VENV), which takes some minutes the first time'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,site,language]'
	@rm $(UNDERWAY) && touch $@
