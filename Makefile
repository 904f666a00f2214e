# Every target is complete by itself: it makes .venv first where that is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL ?=
TEXT ?=

.PHONY: install demo test check style results docs clean

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch by itself first, so that no other package chooses its build; for the CPU build elsewhere than here:
	# make install PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)") $(if $(TEXT),--text "$(TEXT)")

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of results/, from results/data/.
results: $(INSTALLED)
	$(BIN)/python benchmarks/pages.py

# The pages of docs/ as a site, in site/; what commands print on them is written anew first.
docs: $(INSTALLED)
	test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo_output site build *.egg-info pruned pruned-cli pruned-again pruned-shallow recovered chained chained-recovered insight \
		report.html recipe.yaml plan.json plan-30.json
