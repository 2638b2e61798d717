# deltaw: `make run` serves the bundled GPT-2, `make test` runs the tests (`make test-slow` the slow ones).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Waiting threads that spin are up to 50 times slower on a busy machine; read before torch is imported.
export OMP_WAIT_POLICY ?= PASSIVE
# A CPU build of torch is a tenth of the download: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-slow fuzz faults check audit format bench load soak image-check train docs openapi examples clean

run: $(VENV)/.server  ## serve the bundled model, or DELTAW_MODEL, on 127.0.0.1:8000
	$(BIN)/deltaw serve $(ARGS)

test: $(VENV)/.dev  ## the default suite
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

fuzz: $(VENV)/.dev  ## hostile input, much of it: 20,000 generated requests and more, 10,000 mutilated ones
	$(BIN)/python -m pytest -s tests/hostile/long_runs.py $(ARGS)

test-slow: $(VENV)/.docs  ## what takes longer
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.dev audit  ## format, lint, types, import directions, known advisories
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/.audit  ## fails on a known advisory of a dependency that deploy/advisories.toml does not list
	$(BIN)/python -m deploy.audit $(VENV)/audit/bin/pip-audit

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## ratios, side by side, on this machine
	$(BIN)/python -m benchmarks $(ARGS)

FAULTS := test_faults.py test_bad_starts.py test_server.py api/test_failures.py api/test_exchange.py engine/test_checkpoint.py

faults: $(VENV)/.dev  ## killed, damaged, cut off, without memory or disk: by real means
	$(BIN)/python -m pytest $(addprefix tests/,$(FAULTS)) $(ARGS)

load: $(VENV)/.dev  ## mixed requests, bursts, slow clients, leaving clients; every request accounted for
	$(BIN)/python -m benchmarks.load $(ARGS)

soak: $(VENV)/.dev  ## all of them for 25 minutes; memory, threads and files must not grow
	$(BIN)/python -m benchmarks.load --soak 25 $(ARGS)

image-check:  ## build the image, start it, ask it, stop it; with docker or podman
	deploy/check-image.sh

docs: $(VENV)/.docs  ## the site, in build/site; a broken link ends it
	$(BIN)/python -m docs.site
	$(BIN)/zensical build --strict --clean

openapi: $(VENV)/.dev  ## write docs/openapi.json
	$(BIN)/python -m docs.openapi

examples: $(VENV)/.docs  ## run what README.md and docs/ show, and write down what it prints now
	$(BIN)/python -m tests.examples --write $(ARGS)

train: $(VENV)/.dev  ## make the bundled checkpoint again, from installable texts
	$(BIN)/python -m training $(ARGS)

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.server: $(VENV)/.venv requirements.lock pyproject.toml
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(grep ^torch== requirements.lock)"
	$(PIP_INSTALL) -r requirements.lock
	$(PIP_INSTALL) --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.server requirements-dev.lock
	$(PIP_INSTALL) -r requirements-dev.lock
	touch $@

# pip-audit has an environment of its own, since it shares packages with the service.
$(VENV)/.audit: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

$(VENV)/.docs: $(VENV)/.dev requirements-docs.lock
	$(PIP_INSTALL) -r requirements-docs.lock
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
