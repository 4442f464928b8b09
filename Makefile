# Each target does all its own set-up: a bare clone, Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Files of tests/core, tests/metrics and tests/data that `make quick` leaves out: they import torch or take long.
NOT_QUICK := $(addprefix tests/, \
	core/test_interface.py core/test_processes.py core/test_untrusted_runs.py \
	$(addprefix metrics/test_, calibration.py label_noise.py many.py nested.py priors.py shift.py) \
	$(addprefix data/test_, aligned.py checks.py decoder.py duplicates.py face_boxes.py look_alikes.py people.py \
		shortcuts.py tabular_reader.py unicode_names.py webdataset.py))
QUICK := $(filter-out $(NOT_QUICK), $(wildcard tests/core/test_*.py tests/metrics/test_*.py tests/data/test_*.py))
# Options of pytest for several processes.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test quick soak lint docs bench sbom audit clean

demo: $(VENV)/.installed-run
	$(BIN)/unfreeze demo demo

# make test T=tests/metrics: tests of a folder or file; without T, all that are not for `make soak`.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(T) $(PARALLEL)

# Fast tests without torch; a test that imports it fails here.
quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --no-torch $(QUICK) $(PARALLEL)

# 200 kills, faults, 2,000 random cases for each reader, determinism: CONTRIBUTING.md says how long it takes.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak --ignore tests/soak $(PARALLEL)
	UNFREEZE_SOAK=$${UNFREEZE_SOAK:-200} UNFREEZE_FUZZ=$${UNFREEZE_FUZZ:-2000} \
		$(BIN)/python -m pytest -m "soak or not soak" tests/soak tests/training/test_cluster.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py

# The tools live in an environment of their own, so that they are no part of what they describe.
sbom: $(VENV)/.installed-dev $(VENV)-audit/.installed
	$(VENV)-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --of JSON --output-file sbom.json $(BIN)/python

audit: $(VENV)-audit/.installed
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf $(VENV) $(VENV)-audit sbom.json build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "unfreeze needs Python 3.11 or newer; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed-run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed-run

$(VENV)-audit/.installed: audit-constraints.txt
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --requirement audit-constraints.txt
	touch $@
