# Needs make, a POSIX shell, Python 3.11 or newer and pip. `make help` lists what there is.
# Variables to set on the command line: PYTHON (the interpreter .venv is made with), VENV, JOBS, PYTEST_ARGS,
# OLDEST_TORCH. Where pip looks is yours to say, in the PIP_ environment variables or pip's configuration.
.POSIX:

PYTHON =
VENV = .venv
BIN = $(VENV)/bin
JOBS = 2
PYTEST_ARGS =
PYTEST = $(BIN)/python -m pytest
PARALLEL = -n $(JOBS) --dist worksteal

PINS = requirements-dev.txt
METADATA = SplitLearnCore/pyproject.toml SplitLearnComm/pyproject.toml SplitLearnManager/pyproject.toml
PACKAGES = -e './SplitLearnCore[client,server,train]' -e './SplitLearnComm[client,server]' -e './SplitLearnManager[server]'

OLDEST = .venv-oldest
OLDEST_PINS = requirements-oldest.txt
OLDEST_TORCH = $$(sed -n '/^torch==/p' $(OLDEST_PINS))

# pytest ends with 5 where no test has the mark.
NONE_YET = { status=$$?; [ $$status -eq 5 ] && echo "no test has this mark yet"; }

.PHONY: help install install-dev demo test test-quick test-oldest lint format proto proto-check coverage faults soak \
	bench clean distclean

help:
	@echo "make demo         a server, a client and generated text, from a fresh clone"
	@echo "make test         lint and every test but the long ones below"
	@echo ""
	@echo "make install      the three packages in $(VENV)"
	@echo "make install-dev  the same, and what the tests and checks need"
	@echo "make test-quick   the tests that are not marked slow"
	@echo "make test-oldest  the quick tests on the oldest supported versions, in $(OLDEST)"
	@echo "make faults       the faults, cycles and all architectures in full counts (minutes)"
	@echo "make soak         the long runs (up to an hour)"
	@echo "make coverage     the tests with branch coverage, at least 85 % in each package"
	@echo "make lint         ruff, mypy, the directions of imports, the generated protobuf code"
	@echo "make format       let ruff rewrite what it can"
	@echo "make proto        generate the protobuf code from protos/"
	@echo "make bench        the tables of docs/benchmarks.md"
	@echo "make clean        remove caches and what was built; make distclean removes the environments too"
	@echo ""
	@echo "make PYTHON=python3.12 ...   the Python that $(VENV) is made with, where it is not there yet"
	@echo "make PYTEST_ARGS='-k cut'    more arguments for pytest"

# Torch goes in first and alone, so that no package's range ever chooses one; all the rest keeps to the pins.
$(VENV)/.installed: $(PINS) $(METADATA)
	@scripts/make_venv.sh $(VENV) $(PYTHON)
	$(BIN)/python -m pip install -c $(PINS) torch
	$(BIN)/python -m pip install -c $(PINS) $(PACKAGES)
	@touch $@

$(VENV)/.installed-dev: $(PINS) $(METADATA)
	@scripts/make_venv.sh $(VENV) $(PYTHON)
	$(BIN)/python -m pip install -c $(PINS) torch
	$(BIN)/python -m pip install -r $(PINS) $(PACKAGES)
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/splitlearn demo

test: lint
	$(PYTEST) $(PARALLEL) -m "not faults and not soak" $(PYTEST_ARGS)

test-quick: install-dev
	$(PYTEST) $(PARALLEL) -m "not slow and not faults and not soak" $(PYTEST_ARGS)

faults: install-dev
	$(PYTEST) -m "(faults or hypothesis) and not soak" --hypothesis-profile others --timeout 3600 $(PYTEST_ARGS)

soak: install-dev
	$(PYTEST) -m soak --timeout 7200 $(PYTEST_ARGS) || $(NONE_YET)

coverage: install-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) -m "not faults and not soak" $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet
	$(BIN)/coverage report --skip-covered
	$(BIN)/python scripts/check_coverage.py coverage.json --least 85

bench: install-dev
	$(BIN)/python -m benchmarks

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/support
	cd scripts && ../$(BIN)/mypy --config-file ../pyproject.toml .
	$(BIN)/python scripts/check_imports.py
	$(BIN)/python scripts/generate_proto.py --check

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install-dev
	$(BIN)/python scripts/generate_proto.py

proto-check: install-dev
	$(BIN)/python scripts/generate_proto.py --check

# OLDEST_TORCH='torch==2.13.0' takes another torch than the oldest (from PyPI, that one brings gigabytes of CUDA).
$(OLDEST)/.installed: $(OLDEST_PINS) $(METADATA)
	@scripts/make_venv.sh $(OLDEST) $(PYTHON)
	$(OLDEST)/bin/python -m pip install "$(OLDEST_TORCH)"
	sed '/^torch==/d' $(OLDEST_PINS) > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -r $(OLDEST)/constraints.txt $(PACKAGES)
	@touch $@

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m "not slow and not faults and not soak" $(PYTEST_ARGS)

clean:
	rm -rf build dist */build */dist .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov coverage.json .coverage*
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-oldest .venv-proto
