# Everything a person does with the project; `make` alone lists it.
PYTHON ?= python3
# cpu or cuda; on Linux pip's default build of torch is the CUDA one. TORCH_INDEX may name an index of CPU builds.
TORCH ?= cpu
TORCH_INDEX ?=
# Parameters of the pipeline for run, seed-table, submit and schedule: PARAMS="epochs=20 factors=32"
PARAMS ?=
WAIT ?=
CPU_ONLY ?=
BASE_IMAGE ?=
CRON ?=
RATINGS ?=
IMPORT_TABLE ?=
SETTINGS ?= pipelines/settings.toml

VENV := .venv
PY := $(VENV)/bin/python
# pip shows what it downloads on a terminal and is silent in a log.
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
PIP := $(PY) -m pip --disable-pip-version-check install $(QUIET)
TORCH_VERSION := $(shell sed -n 's/.*"torch==\(.*\)".*/\1/p' pyproject.toml)
INSTALLED := $(VENV)/installed-$(TORCH)
params := $(foreach param,$(PARAMS),--param '$(param)')
# The environment has a TZ of its own, and here and there a NAME: only those given to make are meant.
given = $(if $(filter command line,$(origin $(1))),$(2) '$($(1))')

.PHONY: help install run seed-table demo test images compile submit schedule unschedule doctor bench lint clean
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make the virtual environment (.venv) from the lock files

$(INSTALLED): requirements/all.lock requirements/pipeline-components.lock pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes)"
	@# The lock is whole: with nothing to resolve, a release newer than it cannot get in pip's way.
	@$(PIP) --no-deps --require-hashes -r requirements/all.lock -r requirements/pipeline-components.lock
	@PY="$(PY)" TORCH="$(TORCH)" TORCH_INDEX="$(TORCH_INDEX)" VERSION="$(TORCH_VERSION)" QUIET="$(QUIET)" requirements/install-torch
	@$(PIP) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/installed-* && touch $@

run: $(INSTALLED) ## train, evaluate and publish on this machine: RATINGS=file.csv or IMPORT_TABLE=ratings, else the sample
	@$(PY) -m pipelines run $(if $(RATINGS),--ratings '$(RATINGS)') $(if $(IMPORT_TABLE),--import_table '$(IMPORT_TABLE)') $(params)

seed-table: $(INSTALLED) ## fill the table "ratings" of the embedded Supabase from RATINGS=file.csv, else from the sample
	@$(PY) -m pipelines seed-table $(if $(RATINGS),--ratings '$(RATINGS)') $(if $(IMPORT_TABLE),--import_table '$(IMPORT_TABLE)') $(params)

demo: $(INSTALLED) ## a page to play with on the sample's recommendations, in your browser until Ctrl-C
	@$(PY) -m pipelines demo

test: $(INSTALLED) ## run all tests
	@$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

images: $(INSTALLED) ## build the images of the steps and push them: CPU_ONLY=1 trains without a GPU, BASE_IMAGE=…
	@$(PY) -m pipelines images --settings '$(SETTINGS)' $(if $(CPU_ONLY),--cpu_only) --base_image '$(BASE_IMAGE)' --torch_index '$(TORCH_INDEX)'

compile: $(INSTALLED) ## write build/mf-training.yaml, what Vertex AI Pipelines runs
	@$(PY) -m pipelines compile --settings '$(SETTINGS)'

submit: compile ## run it on Vertex AI, where pipelines/settings.toml says; WAIT=1 follows the run to its end
	@$(PY) -m pipelines submit --settings '$(SETTINGS)' $(params) $(if $(WAIT),--wait)

schedule: compile ## run it on Vertex AI at set times: CRON="0 3 * * *" TZ=Europe/Berlin (else UTC) NAME=nightly
	@$(PY) -m pipelines schedule --settings '$(SETTINGS)' --cron '$(CRON)' $(call given,TZ,--tz) $(call given,NAME,--name) $(params)

doctor: $(INSTALLED) ## look at all that a run on Vertex AI needs, and say what to run where it is missing
	@$(PY) -m pipelines doctor --settings '$(SETTINGS)'

unschedule: $(INSTALLED) ## delete the schedule: NAME=nightly
	@$(PY) -m pipelines unschedule --settings '$(SETTINGS)' $(call given,NAME,--name)

bench: $(INSTALLED) ## write docs/benchmarks.md, for hours: PEERS=1 RATINGS=file.csv ROWS=2000000 ONLY=section
	@test -z "$(PEERS)" || $(PIP) -r requirements/bench.in
	@$(PY) -m benchmarks $(or $(ONLY),all) $(if $(RATINGS),--ratings '$(RATINGS)') $(if $(ROWS),--rows $(ROWS))

lint: $(INSTALLED) ## check style and types
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

clean: ## remove what was made here, the virtual environment and local databases included
	@test ! -d .mf/supabase || test ! -x $(PY) || $(PY) -c 'from pathlib import Path; from mf.local import delete_home; delete_home(Path(".mf/supabase"))'
	@rm -rf $(VENV) .mf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
