# make quickstart   environment of users, then the whole life of a small model on the sample data (minutes)
# make test         environment of developers, then lint (also of the workflows and the Dockerfile), types and tests,
#                   without those marked slow
# make docs         the documentation's site on http://localhost:8000, built again when a page changes
# make docs-build   the site as files in build/site; a broken link is an error
# make test-plain   the tests marked any_cpu again, torch held to what an x86-64 processor with AVX2 alone computes
# make test-all     all tests (those of the web page need Chromium), the plain ones again, and the battery of bad input
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: quickstart test test-plain test-all docs docs-build lint format clean

quickstart: .venv/quickstart
	$(BIN)/dcclip run recipes/quickstart.yaml
	$(BIN)/dcclip predict docs/images/cat.png --labels 猫,dog --model runs/quickstart

test: lint
	$(PYTEST) -m "not slow"

test-plain: .venv/installed
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m any_cpu $$(grep -rl any_cpu tests --include 'test_*.py')

test-all: lint test-plain
	$(PYTEST)
	$(BIN)/python -m benchmarks.dev.hostile.battery

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-build: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec integrations/nas/compose.yaml
	$(BIN)/hadolint Dockerfile

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/quickstart: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --editable '.[collect,eval,export]'
	touch $@

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --editable '.[all,dev]'
	touch .venv/quickstart $@

clean:
	rm -rf .venv build dist
