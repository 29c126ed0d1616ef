# make demo   set up, distil a student on real photographs, show it
# make test   set up, run every test
# make lint   ruff
# make setup  only install, into .venv; tests and lint install what only they need
#
# PYTHON=python3.12        the interpreter for .venv (3.10 to 3.12)
# BASICSR=folder           for Python 3.13: a clone of BasicSR, mended as docs/drop-in.md says
# TORCH_INDEX=address      where to get torch and torchvision from, such as PyTorch's own index of CPU wheels
# TEACHER=path, URL, name  the demo's teacher, instead of the one in this repository
# PHOTOS=folder            the demo's photographs, instead of scikit-image's
# OUT=demo                 the demo's folder
# SEED=0                   the demo's random seed
# JOBS=2                   how many test files run at a time
# START=spawn              tests: how processes start their workers (fork, spawn, forkserver; default: the system's way)

PYTHON ?= python3
SEED ?= 0
OUT ?= demo
JOBS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo test lint setup

demo: .venv/ready
	$(BIN)/sdakd demo --seed $(SEED) $(if $(TEACHER),-t "$(TEACHER)") $(if $(PHOTOS),-d "$(PHOTOS)") -o $(OUT)

test: .venv/tested
	@$(BIN)/python tests/run.py --jobs $(JOBS) $(if $(START),--start $(START))

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: .venv/ready

.venv/ready: requirements.txt requirements-build.txt pyproject.toml
	@echo 'Setting up .venv (a few minutes)'
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, $(if $(BASICSR),13,12)) else "Error: Python %d.%d is not supported, BasicSR needs 3.10 to 3.12: make PYTHON=python3.12 (3.13: BASICSR=..., see docs/drop-in.md)" % v)'
	$(PYTHON) -m venv .venv
	$(if $(FROM),$(INSTALL) $(FROM) $$(grep '^torch==' requirements-build.txt) $$(grep '^torchvision==' requirements.txt))
	$(INSTALL) -r requirements-build.txt
	$(if $(BASICSR),$(INSTALL) --no-build-isolation -c requirements.txt "$(BASICSR)")
	$(INSTALL) --no-build-isolation -r requirements.txt
	$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

.venv/tested: .venv/ready requirements-dev.txt
	$(INSTALL) --no-build-isolation -c requirements-build.txt -c requirements.txt -r requirements-dev.txt
	@touch $@
