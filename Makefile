# All that a newcomer types: `make demo`, `make test`. PYTHON=python3.12 picks the interpreter.
PYTHON ?= python3
PYTEST_WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test test-slow lint clean

# The version check comes first: pip's own words for a Python that does not fit are a page long.
# (3.14 lacks a wheel of tensorflow-text, which seqio needs.)
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' here; Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "make: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "make: $(PYTHON) cannot make a venv (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }

# Constraints are tested sets of versions, one per Python minor version.
define install
	@constraints=constraints/constraints-$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; \
	echo "installing $(1) with $$constraints (about 3 GB, a few minutes the first time)"; \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c $$constraints -e "$(1)"
endef

.venv/.installed: setup.py pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	$(call install,.)
	@touch $@

.venv/.installed-test: .venv/.installed
	$(call install,.[test])
	@touch $@

# CONTROL=1 also runs the same on a backbone of random weights.
demo: .venv/.installed
	$(BIN)/python tools/demo.py --out out/demo $(if $(CONTROL),--control)

test: .venv/.installed-test
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -m "not slow and not live_parity"

test-slow: .venv/.installed-test
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -m "slow and not live_parity"

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build dist out *.egg-info
