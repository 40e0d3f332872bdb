# Each target does the set-up it needs. docs/cluster.md gives the commands behind them for machines without make.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.locked
TORCH ?= $(if $(wildcard $(VENV)/cpu.lock),cpu)  # cpu: without the CUDA libraries; kept for later calls
unexport PYTHONDONTWRITEBYTECODE  # without compiled files every process compiles torch and pandas anew

.PHONY: help env paper test check export lab app slides site stress lock

help:  ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

env: $(STAMP)  ## set up .venv with the locked versions

$(STAMP): requirements.lock settings.ini setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv
ifeq ($(strip $(TORCH)),cpu)
	@$(MAKE) -s $(VENV)/cpu.lock
	@PATH="$$PATH:$(BIN)" uv pip install -q --python $(BIN)/python --torch-backend cpu $(shell grep -oE '^torch(vision)?==[0-9.]+' requirements.lock)
	@PATH="$$PATH:$(BIN)" uv pip install -q --python $(BIN)/python -r $(VENV)/cpu.lock
else
	@PATH="$$PATH:$(BIN)" uv pip install -q --python $(BIN)/python -r requirements.lock
endif
	@PATH="$$PATH:$(BIN)" uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

$(VENV)/cpu.lock: requirements.lock
	@mkdir -p $(VENV) && grep -vE '^(cuda|nvidia|triton)' $< > $@

paper: env  ## execute what is stale and rebuild the smoke article and supplement (PROFILE=cpu for the real data)
	@$(BIN)/medseg paper --profile $(or $(PROFILE),smoke) -j 2

# two workers on two cores: threads of their own would wait for each other
test check: export OMP_NUM_THREADS := 1
test: env  ## every notebook's tests and those in tests/, but for the long ones
	@PATH="$(BIN):$$PATH" $(BIN)/nbdev_test --path nbs --n_workers 2 --skip_folder_re '^(course|[_.])'
	@$(BIN)/python -m pytest -n 2 --dist worksteal

check: env  ## the same with the lessons, the results of cpu, whole studies, servers, browsers and killed processes, as CI does
	@PATH="$(BIN):$$PATH" $(BIN)/nbdev_test --path nbs --n_workers 2 --flags long
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not stress"

export: env  ## write the library from the notebooks, and clean them
	@PATH="$(BIN):$$PATH" sh -c 'nbdev_export && nbdev_clean --fname nbs'

lab: env  ## open the notebooks
	@$(BIN)/jupyter lab nbs

app: env  ## bring NiiVue, the volume viewer of `medseg serve app`, and check its hash
	@$(BIN)/python -c "from medseg_nb.deployment.app import bring_niivue; print(bring_niivue())"

slides: env  ## execute the lessons of the course and write the slides of each to slides/
	@$(BIN)/python -c "from medseg_nb.paper.slides import main; main()"

site: env  ## set the site from the repository, offline, and check its links; it lies in _site/html
	@$(BIN)/python -c "from medseg_nb.paper.site import main; main()"

stress: env  ## fuzz readers, scores and every command, and kill sections of the smoke paper; at most 40 minutes
	@$(BIN)/python -m pytest -m stress

lock: env  ## resolve the requirements of settings.ini anew, to the same versions for all systems and Pythons
	@touch setup.py  # uv caches what setup.py says until its time changes, and settings.ini is what changes
	@PATH="$$PATH:$(BIN)" uv pip compile -q --universal --fork-strategy fewest --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		--extra study --extra paper --extra deploy --extra hospital --extra stream --extra app --extra site --extra cluster --extra dev setup.py -o requirements.lock
