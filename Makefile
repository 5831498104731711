# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
#
#   make run    start a local cluster, store a real file under three policies, read it back
#   make stop   end that cluster
#   make test   install what tests need (as root, with apt-get); lint, then unit, functional and fault tests
#   make chaos  misfortunes at random for a long time (OIO_CHAOS_KILLS, OIO_CHAOS_ROUNDS, OIO_CHAOS_SEED)
#   make bench  measure throughput and latency on a cluster of its own
#   make bench-large  measure a container of a million objects against an empty one

PYTHON ?= python3
VENV := .venv
PYTHON_HERE := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
CLUSTER := run
export OIO_SDS_CONF := $(CURDIR)/$(CLUSTER)/sds.conf

.PHONY: run stop status test packages lint unit functional fault chaos bench bench-large clean

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, not " + sys.version) if sys.version_info < (3, 11) else 0'
	@test -x $(PYTHON_HERE) || $(PYTHON) -m venv $(VENV)
	@$(PYTHON_HERE) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PYTHON_HERE) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

run: $(VENV)/.installed
	@$(PYTHON_HERE) tools/demo.py --home $(CLUSTER)

stop:
	@if [ -x $(PYTHON_HERE) ]; then $(PYTHON_HERE) -m oio.sandbox --home $(CLUSTER) stop; fi

status:
	@$(PYTHON_HERE) -m oio.sandbox --home $(CLUSTER) status

test: packages lint unit functional fault

# Programs that come from no Python package: ZooKeeper, beanstalkd, strace. Installed where that is possible.
packages:
	@.ci/packages

lint: $(VENV)/.installed-test
	$(PYTHON_HERE) -m ruff check .
	$(PYTHON_HERE) -m mypy

# Most of these tests wait for something: three at once take less than half the time.
unit: $(VENV)/.installed-test
	$(PYTHON_HERE) -m pytest -q -n 3 --dist loadfile tests/unit

# Clusters of their own, two at once.
functional: $(VENV)/.installed-test
	$(PYTHON_HERE) -m pytest -q -n 2 --dist loadfile tests/functional

fault: $(VENV)/.installed-test
	$(PYTHON_HERE) -m pytest -q -n 2 --dist loadfile tests/fault

chaos: export OIO_CHAOS_KILLS ?= 300
chaos: export OIO_CHAOS_ROUNDS ?= 200
chaos: export OIO_CHAOS_SEED ?= random
chaos: $(VENV)/.installed-test
	$(PYTHON_HERE) -m pytest -q -s -o timeout=0 tests/fault/test_chaos.py tests/fault/test_replicated_histories.py

bench: $(VENV)/.installed-test
	$(PYTHON_HERE) -m tools.benchmark $(BENCH)

bench-large: $(VENV)/.installed-test
	$(PYTHON_HERE) -m tools.benchmark.large $(BENCH)

clean:
	@if [ -x $(PYTHON_HERE) ]; then $(PYTHON_HERE) -m oio.sandbox --home $(CLUSTER) destroy; fi
	rm -rf build $(VENV) $(CLUSTER) *.egg-info
