# The project's commands; `make` alone lists them.
PYTHON ?= python3
# cpu or cuda; on Linux pip's default build of torch is the CUDA one. TORCH_INDEX may name an index of CPU builds.
TORCH ?= cpu
TORCH_INDEX ?=
# Parameters of the pipeline for run, seed-table, submit and schedule: PARAMS='epochs=20 movie_column="Book Title"'
PARAMS ?=
WAIT ?=
CPU_ONLY ?=
BASE_IMAGE ?=
CRON ?=
RATINGS ?=
IMPORT_TABLE ?=
FRESH ?=
SETTINGS ?= pipelines/settings.toml
# Where to compile for and run: vertex or kubeflow (default: as the settings say).
TARGET ?=
JOB ?=

VENV := .venv
PY := $(VENV)/bin/python
# pip shows what it downloads on a terminal and is silent in a log.
QUIET := $(if $(value MAKE_TERMOUT),,--quiet)
PIP := $(PY) -m pip --disable-pip-version-check install $(QUIET)
TORCH_VERSION := $(shell sed -n 's/.*"torch==\(.*\)".*/\1/p' pyproject.toml)
# Its text is neither expanded nor part of a shell word.
$(if $(filter-out cpu cuda,$(value TORCH)),$(error TORCH=$(value TORCH), expected cpu or cuda))
INSTALLED := $(VENV)/installed-$(value TORCH)

# No recipe holds the text of these: it is in the environment as GIVEN_…, so it may have blanks, quotes and $ in it.
# A project of the user's own counts on make's command line only: an exported variable never publishes.
TEXTS := PYTHON RATINGS IMPORT_TABLE PARAMS SETTINGS CRON TZ NAME BASE_IMAGE TORCH TORCH_INDEX ONLY ROWS TARGET JOB
$(foreach text,$(TEXTS),$(eval export GIVEN_$(text) = $$(value $(text))))
export GIVEN_SUPABASE_URL = $(value SUPABASE_URL)
# Make would expand what stands in them when it exports them.
unexport $(filter-out TZ,$(TEXTS)) FRESH WAIT CPU_ONLY PEERS \
   $(foreach name,TZ SUPABASE_URL,$(if $(filter command line,$(origin $(name))),$(name)))
$(foreach secret,SUPABASE_KEY SUPABASE_DB_URL,$(if $(filter command line,$(origin $(secret))),$(error $(secret) on make's \
  command line can be read in the list of processes and stays in the shell's history: export it, or leave it out to be asked)))
# A misspelled name would silently mean the sample. A make that calls this one hands over its own variables, too.
TAKEN := $(TEXTS) SUPABASE_URL FRESH WAIT CPU_ONLY PEERS PYTHON VENV PY QUIET PIP INSTALLED RUN params source settings
ENVIRONMENT := MF_% SUPABASE_% PIP_% LC_% HOME TMPDIR PATH SHELL LANG NO_COLOR NO_PROXY
typed := $(foreach name,$(.VARIABLES),$(if $(findstring -,$(name)),,$(if $(filter command,$(origin $(name))),$(name))))
$(foreach name,$(if $(filter 0,$(MAKELEVEL)),$(filter-out $(TAKEN) $(ENVIRONMENT),$(typed))),$(error unknown variable $(name), expected one of $(sort \
  $(TEXTS) SUPABASE_URL FRESH WAIT CPU_ONLY PEERS PYTHON); a parameter of the pipeline goes into PARAMS="epochs=20"))
# A run ends with the make that started it: the shell's parent.
RUN = MF_MAKE_PID=$$PPID $(PY) -m pipelines
flag = $(if $(value $(1)),$(2)="$$GIVEN_$(1)")
# Many environments have a TZ and some a NAME of their own: these two count on make's command line only.
typed_flag = $(if $(filter command line,$(origin $(1))),$(flag))
params = $(call flag,PARAMS,--params)
source = $(call flag,RATINGS,--ratings) $(call flag,IMPORT_TABLE,--import_table)
settings = --settings="$$GIVEN_SETTINGS" $(call typed_flag,TARGET,--target)

.PHONY: help install run seed-table demo test images compile submit watch schedule unschedule doctor bench lint clean
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## create the virtual environment (.venv) from the lock files

$(INSTALLED): requirements/all.lock requirements/pipeline-components.lock pyproject.toml
	@"$$GIVEN_PYTHON" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@test -x $(PY) || "$$GIVEN_PYTHON" -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes)"
	@# The lock is whole: with nothing to resolve, a release newer than it cannot get in pip's way.
	@$(PIP) --no-deps --require-hashes -r requirements/all.lock -r requirements/pipeline-components.lock
	@PY="$(PY)" TORCH="$$GIVEN_TORCH" TORCH_INDEX="$$GIVEN_TORCH_INDEX" VERSION="$(TORCH_VERSION)" QUIET="$(QUIET)" requirements/install-torch
	@$(PIP) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/installed-* && touch $@

run: $(INSTALLED) ## train, evaluate and publish on this machine: RATINGS=file.csv or IMPORT_TABLE=ratings, else the sample; SUPABASE_URL=… your project; FRESH=1 reads an unchanged file again
	@$(RUN) run $(source) $(call typed_flag,SUPABASE_URL,--supabase_url) $(if $(value FRESH),--fresh) $(params)

seed-table: $(INSTALLED) ## fill the table "ratings" of the embedded Supabase from RATINGS=file.csv, else from the sample
	@$(PY) -m pipelines seed-table $(source) $(params)

demo: $(INSTALLED) ## serve a demo page until Ctrl-C: RATINGS=file.csv or IMPORT_TABLE=ratings, else the sample; SUPABASE_URL=… reads the table of your project
	@$(RUN) demo $(source) $(call typed_flag,SUPABASE_URL,--supabase_url) $(params)

test: $(INSTALLED) ## run all tests
	@$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

images: $(INSTALLED) ## build and push the images of the steps: CPU_ONLY=1 trains without a GPU, BASE_IMAGE=…
	@$(PY) -m pipelines images $(settings) $(if $(value CPU_ONLY),--cpu_only) $(call flag,BASE_IMAGE,--base_image) $(call flag,TORCH_INDEX,--torch_index)

compile: $(INSTALLED) ## write build/mf-training.yaml for Vertex AI Pipelines; TARGET=kubeflow: for Kubeflow Pipelines
	@$(PY) -m pipelines compile $(settings)

submit: compile ## run it on Vertex AI or Kubeflow, as pipelines/settings.toml says; WAIT=1 follows the run to its end
	@$(PY) -m pipelines submit $(settings) $(params) $(if $(value WAIT),--wait)

watch: $(INSTALLED) ## follow a run to its end: JOB=… as make submit prints it
	@$(PY) -m pipelines watch $(settings) --job="$$GIVEN_JOB"

schedule: compile ## run it there on a schedule: CRON="0 3 * * *" TZ=Europe/Berlin (else UTC) NAME=nightly
	@$(PY) -m pipelines schedule $(settings) --cron="$$GIVEN_CRON" $(call typed_flag,TZ,--tz) $(call typed_flag,NAME,--name) $(params)

doctor: $(INSTALLED) ## check everything that a run on Vertex AI or Kubeflow needs; print the command for each missing thing
	@$(PY) -m pipelines doctor $(settings)

unschedule: $(INSTALLED) ## delete the schedule: NAME=nightly
	@$(PY) -m pipelines unschedule $(settings) $(call typed_flag,NAME,--name)

bench: $(INSTALLED) ## write docs/benchmarks.md (takes hours): PEERS=1 RATINGS=file.csv ROWS=2000000 ONLY=section
	@$(if $(value PEERS),$(PIP) -r requirements/bench.in)
	@$(PY) -m benchmarks $(if $(value ONLY),"$$GIVEN_ONLY",all) $(call flag,RATINGS,--ratings) $(call flag,ROWS,--rows)

lint: $(INSTALLED) ## check style and types
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

clean: ## remove all that make created, with the virtual environment and the local databases
	@test ! -d .mf/supabase || test ! -x $(PY) || $(PY) -c 'from pathlib import Path; from mf.errors import reported; from mf.local import delete_home; reported()(delete_home)(Path(".mf/supabase"))'
	@rm -rf $(VENV) .mf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
