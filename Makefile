# `make run` serves the bundled GPT-2; `make test` runs the tests, `make test-slow` the slow ones.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without this, waiting threads spin, which makes work up to 50 times slower on a busy machine. torch reads it at import.
export OMP_WAIT_POLICY ?= PASSIVE
# The CPU build of torch is a 192 MB download, the default build several GB. To get the CPU build:
# make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' service/__init__.py)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-slow real fuzz faults check audit sbom format client bench load soak fleet image-check train docs openapi conformance examples figures clean

run: $(VENV)/.server  ## serve the bundled model, or DELTAW_MODEL, on 127.0.0.1:8000
	$(BIN)/deltaw serve $(ARGS)

test: $(VENV)/.dev  ## run the tests, except the slow ones
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

fuzz: $(VENV)/.dev  ## send over 20,000 generated and 10,000 corrupted requests, in 5 minutes
	$(BIN)/python -m pytest -s tests/hostile/long_runs.py $(ARGS)

test-slow: $(VENV)/.docs $(VENV)/.fleet $(VENV)/.sbom  ## run the slow tests, and give the reasons of those that are skipped
	$(BIN)/python -m pytest -m slow -rs $(ARGS)

MODELS ?= smollm2

real: $(VENV)/.dev  ## fetch and convert the pretrained MODELS, smollm2 and gemma3, and test on them
	$(BIN)/python -m tests.real.weights $(MODELS)
	REAL_MODELS="$(MODELS)" $(BIN)/python -m pytest -rs tests/real $(ARGS)

check: $(VENV)/.dev audit  ## check format, lint, types, import directions, Kubernetes manifests and known advisories
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m deploy.manifests

audit: $(VENV)/.audit  ## fail on a known advisory of a dependency, unless deploy/advisories.toml lists it
	$(BIN)/python -m deploy.audit $(VENV)/audit/bin/pip-audit

sbom: $(VENV)/.sbom  ## write build/sbom.json, the packages of requirements.lock in CycloneDX's format
	mkdir -p build
	# cyclonedx does not read a dynamic version, and warns that a lock does not say which package needs which.
	sed "s/^dynamic = .*/version = \"$(VERSION)\"/" pyproject.toml > build/sbom.toml
	$(VENV)/sbom/bin/python -W ignore::UserWarning -m cyclonedx_py requirements requirements.lock \
		--pyproject build/sbom.toml --mc-type application --output-reproducible --validate --output-file build/sbom.json

format: $(VENV)/.dev  ## format the code and fix lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

DIST ?= build/dist

client: $(VENV)/.venv  ## build the client's own distribution, deltaw-client, as a wheel in DIST
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(DIST) ./deploy/client

bench: $(VENV)/.dev  ## compare speed with the seed script and with peers, on this machine
	$(BIN)/python -m benchmarks $(ARGS)

FAULTS := test_faults.py test_adapter_faults.py test_bad_starts.py test_server.py api/test_failures.py api/test_exchange.py api/test_lines_flow.py engine/test_checkpoint.py

faults: $(VENV)/.dev  ## kill, starve and cut off real services, damage checkpoints, fill disks
	$(BIN)/python -m pytest $(addprefix tests/,$(FAULTS)) $(ARGS)

load: $(VENV)/.dev  ## run mixed requests, bursts, slow and leaving clients, and account for every request
	$(BIN)/python -m benchmarks.load $(ARGS)

soak: $(VENV)/.dev  ## run all load clients for 25 minutes; memory, threads and files must not grow
	$(BIN)/python -m benchmarks.load --soak 25 $(ARGS)

fleet: $(VENV)/.fleet  ## kill, redeploy and scale fleets of HAProxy and of Ray Serve, and count what is lost
	$(BIN)/python -m benchmarks.cluster $(ARGS)

image-check:  ## build, start, query and stop the image, with docker or podman
	deploy/check-image.sh

docs: $(VENV)/.docs  ## build the site of the documents in build/site; fail on a broken link
	$(BIN)/python -m docs.site
	$(BIN)/zensical build --strict --clean

openapi: $(VENV)/.dev  ## write docs/openapi.json
	$(BIN)/python -m docs.openapi

conformance: $(VENV)/.dev  ## measure every family and the pretrained MODELS against the oracle, and write docs/conformance.md
	$(BIN)/python -m docs.conformance --models $(MODELS) $(ARGS)

examples: $(VENV)/.docs  ## run the examples of README.md and docs/ and update the shown output
	$(BIN)/python -m tests.examples --write $(ARGS)

figures: $(VENV)/.docs  ## measure adapters and the pretrained models again, and write the figures of docs/theory.md
	$(BIN)/python -m docs.adapter_figures
	$(BIN)/python -m docs.figures smollm2 gemma3

train: $(VENV)/.dev  ## train the bundled checkpoint again, from installable texts
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

# pip-audit has its own environment, because it shares packages with the service.
$(VENV)/.audit: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

# An environment without the packages of the service, so that the two cannot conflict.
$(VENV)/.sbom: $(VENV)/.venv
	$(PYTHON) -m venv $(VENV)/sbom
	$(VENV)/sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	touch $@

$(VENV)/.docs: $(VENV)/.dev requirements-docs.lock
	$(PIP_INSTALL) -r requirements-docs.lock
	touch $@

# Ray has its own environment, so that the server's lock does without it. The environment takes all
# other packages from the first one, torch too.
$(VENV)/.fleet: $(VENV)/.dev requirements-fleet.lock
	$(PYTHON) -m venv $(VENV)/fleet
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> "$$($(VENV)/fleet/bin/python -c 'import site; print(site.getsitepackages()[0])')/server.pth"
	$(VENV)/fleet/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-fleet.lock
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
