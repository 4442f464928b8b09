# Each target does all its own set-up: a bare clone, Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint docs bench sbom audit clean

demo: $(VENV)/.installed-run
	$(BIN)/unfreeze demo demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# 200 kills, faults, 2,000 random cases for each reader, determinism: CONTRIBUTING.md says how long it takes.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak --ignore tests/soak --numprocesses auto --maxprocesses 4 --dist loadfile
	UNFREEZE_SOAK=$${UNFREEZE_SOAK:-200} UNFREEZE_FUZZ=$${UNFREEZE_FUZZ:-2000} \
		$(BIN)/python -m pytest -m "soak or not soak" tests/soak tests/learn/test_cluster.py

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
