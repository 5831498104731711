# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
#
#   make run    start a local cluster, store a real file under three policies, read it back
#   make stop   end that cluster
#   make test   lint, then unit, functional and fault tests
#   make bench  measure throughput and latency on a cluster of its own

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CLUSTER := $(CURDIR)/run
export OIO_SDS_CONF := $(CLUSTER)/sds.conf

.PHONY: run stop status test lint unit functional fault bench clean

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, not " + sys.version) if sys.version_info < (3, 11) else 0'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

run: $(VENV)/.installed
	@$(BIN)/python tools/demo.py --home $(CLUSTER)

stop:
	@if [ -x $(BIN)/oio-sandbox ]; then $(BIN)/oio-sandbox --home $(CLUSTER) stop; fi

status:
	@$(BIN)/oio-sandbox --home $(CLUSTER) status

test: lint unit functional fault

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/unit

functional: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/functional

fault: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/fault

bench: $(VENV)/.installed-test
	$(BIN)/python -m tools.benchmark $(BENCH)

clean: stop
	rm -rf build $(VENV) run
