# Needs make and Python 3.11 or newer with venv; everything else goes into .venv.
SHELL := /bin/sh
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BENCH_VENV := .venv-bench
IN := $(VENV)/bin
SOURCES := $(shell find cfs_tags -name '*.py' -o -name py.typed)
# the wheels for building and installing come from wherever pip is set up to look
PIP := -m pip --disable-pip-version-check --no-input --quiet
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?= --runs 1000000

.PHONY: help demo docs packages test soak attack large vm lint bench clean
help: ## show what there is
	@echo 'make demo    run cfs-tag on a copy of the recorded host in examples/'
	@echo 'make docs    the documentation as a site, in docs/_site'
	@echo 'make packages sdist, wheel, one-file program, RPM and deb, in dist'
	@echo 'make test    linters, types, import contracts and all tests'
	@echo 'make soak    stop a collection everywhere, then collect beside pulls and tags for ten minutes (CFS_TAGS_SOAK_SECONDS)'
	@echo 'make attack  exchange parts of a repository with links for ten minutes while every command works in it; needs root and cc'
	@echo 'make fuzz    fuzz every parser, or some: FUZZ_ARGS="--runs 1000000 grub"; one with options of libFuzzer: FUZZ_ARGS="grub -max_len=99"'
	@echo 'make large   files beyond 8 GiB in, out and served: minutes, and 20 GB of disk in TMPDIR'
	@echo 'make vm      the tests that need a kernel with fs-verity alone, in a QEMU machine'
	@echo 'make lint    the linters, types and import contracts alone'
	@echo 'make bench   measure time and memory of the installed program'
	@echo 'make clean   remove what make made'
	@echo 'Options: PYTHON=/path/to/python3 (3.11 or newer), PYTEST_ARGS="-k name", BENCH_ARGS="--quick", CFS_TAGS_REQUIRE_PEERS=1'

demo: $(VENV)/installed
	@PATH="$(CURDIR)/$(IN):$$PATH" sh examples/demo.sh

docs: $(VENV)/tools
	$(IN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_site
	@echo 'docs/_site/index.html'

packages: $(VENV)/installed
	PYTHON=$(CURDIR)/$(IN)/python sh packaging/make dist $(PACKAGES)

# a file stays with one process, so what its tests share is made once; tests/conftest.py has files that take long begin first
test: lint
	$(IN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak: $(VENV)/tools
	CFS_TAGS_EVERY_STOP=1 $(IN)/python -m pytest tests/gc/test_stops.py $(PYTEST_ARGS)
	CFS_TAGS_SOAK_SECONDS=$${CFS_TAGS_SOAK_SECONDS:-600} $(IN)/python -m pytest tests/gc/test_beside.py -k waits_for_ever $(PYTEST_ARGS)

attack: $(VENV)/tools
	CFS_TAGS_ATTACK_SECONDS=$${CFS_TAGS_ATTACK_SECONDS:-300} $(IN)/python -m pytest -s tests/hostile/test_attack.py $(PYTEST_ARGS)

fuzz: $(VENV)/fuzzer
	cd tests && ../$(IN)/python -m fuzz.run $(FUZZ_ARGS)

large: $(VENV)/tools
	$(IN)/python -m pytest -m large tests/apps/test_large.py $(PYTEST_ARGS)

vm: $(VENV)/tools
	$(IN)/python -m pytest -m vm tests/vm $(PYTEST_ARGS)

lint: $(VENV)/tools
	$(IN)/ruff check .
	$(IN)/ruff format --check .
	$(IN)/mypy
	$(IN)/lint-imports --no-cache

bench: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python bench/run.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist docs/_site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find cfs_tags tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# editable: the checkout is what runs
$(VENV)/installed: pyproject.toml scripts/make-venv
	sh scripts/make-venv $(VENV)
	$(IN)/python $(PIP) install --editable .
	@touch $@

$(VENV)/tools: $(VENV)/installed
	$(IN)/python $(PIP) install --editable '.[dev]'
	@touch $@

$(VENV)/fuzzer: $(VENV)/tools
	$(IN)/python $(PIP) install 'atheris>=3,<4'
	@touch $@

# A wheel with compiled bytecode: start-up is measured as users have it, whatever the environment says about bytecode.
# Built from a copy, so that nothing is left in the checkout.  pytest is there for the helpers in tests/support alone.
$(BENCH_VENV)/installed: pyproject.toml scripts/make-venv $(SOURCES)
	sh scripts/make-venv $(BENCH_VENV)
	rm -rf $(BENCH_VENV)/source
	mkdir $(BENCH_VENV)/source
	cp -R pyproject.toml LICENSE cfs_tags $(BENCH_VENV)/source/
	$(BENCH_VENV)/bin/python $(PIP) uninstall --yes cfs-tags
	$(BENCH_VENV)/bin/python $(PIP) install './$(BENCH_VENV)/source[serve]' pytest
	$(BENCH_VENV)/bin/python -m compileall -q $(BENCH_VENV)/lib
	@rm -rf $(BENCH_VENV)/source
	@touch $@
