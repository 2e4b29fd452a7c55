# The commands of the project; each makes the environment it needs.
PYTHON ?= python3
PORT ?= 8000
DATA ?= ../shared/data
PROCESSES ?= 1
ARTIFACTS ?= fashion-mnist breast-cancer
VENV := .venv
BIN := $(VENV)/bin
CUDA_ONLY := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime \
    cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
LOCK = CUSTOM_COMPILE_COMMAND="make lock" .cache/pip-tools/bin/pip-compile --quiet --generate-hashes --strip-extras \
    --no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --pip-args "$(PIP_ARGS)" \
    $(addprefix --unsafe-package ,glow-service torch $(CUDA_ONLY)) $(UPGRADE)

.PHONY: serve install develop test check licences supply docs format fuzz artifacts pictures lock docker-test bench-engine bench-engine-cuda \
    bench-conditioners bench-plane bench-adbench bench-why \
    bench-anomalies bench-bulk bench-capacity bench-ddp bench-drift bench-explanations bench-false-alarms bench-fold-calibration \
    bench-hosts bench-json bench-serving bench-overload bench-idle bench-lifecycle bench-node-loss mutants soak chaos reliability clean

serve: $(VENV)/.serve
	GLOW_CACHE_DIR=$${GLOW_CACHE_DIR-.cache} $(BIN)/python -m service --port $(PORT)

# What the commands need, to train too; then `. .venv/bin/activate` and, for one, `python -m model.train --help`.
install: $(VENV)/.serve $(VENV)/.train

# What tests and checks need, too.
develop: $(VENV)/.test

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r .
	$(BIN)/python -m reliability.supply --check > /dev/null

# Licences of all that the images ship; fails for one that is not accepted (docs/dependencies.md).
licences: $(VENV)/.test
	$(BIN)/python -m reliability.supply --check

# The same, and the table of docs/dependencies.md and reliability/figures/supply.json as measured here.
supply: $(VENV)/.test
	$(BIN)/python -m reliability.supply

# The site, in build/docs; a link that leads nowhere ends it. Neither this nor reading it needs a network.
docs: $(VENV)/.test
	$(BIN)/python -m sphinx -E -W --keep-going -n -q docs build/docs

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Trains from data (hours for the images) on so many processes; continues a run that was interrupted.
artifacts: $(VENV)/.test
	for name in $(ARTIFACTS); do \
	    resume=$$(test ! -e runs/$$name/last.pt || echo --resume); \
	    $(BIN)/torchrun --nproc-per-node $(PROCESSES) -m model.train model/recipes/$$name.toml --data-dir $(DATA) $$resume && \
	    $(BIN)/python -m model.export runs/$$name/best.pt service/artifacts/$$name.pt --data-dir $(DATA) || exit 1; \
	done

# Draws docs/images again, a few minutes on one core; make pictures PICTURES=samples draws one. What needs data that are
# not in DATA is kept as it is.
pictures: $(VENV)/.test
	$(BIN)/python -W ignore -m docs.pictures $(PICTURES) --data $(DATA)

# Fuzzes every reader of bytes from outside for SECONDS=10 each, which atheris does; keeps reliability/figures/fuzz.json.
fuzz: $(VENV)/.test $(VENV)/.fuzz
	$(BIN)/python -W ignore -m reliability.fuzz --seconds $(or $(SECONDS),10)

# Writes requirements/*.txt again after a change of pyproject.toml, keeping the releases that still fit; make lock
# UPGRADE=--upgrade takes the newest. Without torch and what only its GPU build needs: that depends on the device.
lock: .cache/pip-tools/bin/pip-compile
	$(LOCK) --extra test --output-file requirements/test.txt pyproject.toml
	for extra in serve ray train fuzz; do \
	    traces=$$(case $$extra in serve|ray) echo --extra otel;; esac); \
	    $(LOCK) --extra $$extra $$traces --constraint requirements/test.txt --output-file requirements/$$extra.txt pyproject.toml || exit 1; \
	done
	$(LOCK) --output-file requirements/image.txt requirements/image.in
	sed -i '/^# WARNING/,$$d' requirements/*.txt  # which names what is left out here

# Builds the images, starts them as users do, and checks what docs/containers.md promises; needs a Docker engine.
docker-test: $(VENV)/.test
	$(BIN)/python -m pytest -p no:cacheprovider -sv tests/containers.py tests/containers_ray.py

# Tables of what was measured; docs/benchmarks.md tells what each is.
bench-engine: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.engine

bench-engine-cuda: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.engine_cuda

bench-conditioners: $(VENV)/.test
	$(BIN)/python -m benchmarks.conditioners

bench-plane: $(VENV)/.test
	$(BIN)/python -m benchmarks.plane

# Digits too, where runs/mnist/mnist.pt was trained and exported.
bench-anomalies: $(VENV)/.test
	for artifact in service/artifacts/fashion-mnist.pt $(wildcard runs/mnist/mnist.pt); do \
	    $(BIN)/python -m benchmarks.anomalies $$artifact $(DATA) || exit 1; \
	done

bench-adbench: $(VENV)/.test
	$(BIN)/python -m benchmarks.adbench $(DATA)/adbench --seeds 3

bench-bulk: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.bulk

# On two cores that do nothing else, about a minute and a half.
bench-ddp: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.ddp

# Two hosts in network namespaces, one of which dies; as root.
bench-hosts: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.hosts

bench-false-alarms: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.false_alarms --data-dir $(DATA)

bench-fold-calibration: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.fold_calibration

bench-json: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.json_parsing

# About 5 minutes on one core.
bench-drift: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.drift

bench-explanations: $(VENV)/.test
	$(BIN)/python -m benchmarks.explanations

# A flow beside three other kinds of model: about 40 minutes on one core, on Fashion-MNIST where DATA holds it.
bench-why: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.why_a_flow --seconds 120 \
	    $(if $(wildcard $(DATA)/fashion-mnist),--data $(DATA)/fashion-mnist) --out docs/why-a-flow.md

# The service under load (wrk is needed): beside its peers, about 9 minutes; above its peak; beside idle connections;
# while it is reloaded and stopped.
bench-serving: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving

bench-overload: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving.overload

bench-idle: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving.idle

bench-lifecycle: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving.lifecycle

# As root, about 5 minutes.
bench-node-loss: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving.node_loss

# Hours of every load, and what they do to memory, files and latencies (wrk is needed); make soak MINUTES=5 for a look.
soak: $(VENV)/.test
	$(BIN)/python -W ignore -m reliability.soak --minutes $(or $(MINUTES),60)

# Costs of the service's parts, what the capacity model makes of them beside real runs, and the tables of its page:
# about 8 minutes, of which Ray's clusters take half.
bench-capacity: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.capacity.measure
	$(BIN)/python -W ignore -m benchmarks.capacity.validate
	$(BIN)/python -m benchmarks.capacity.report

# Changes bijections, batcher, codecs and scores in one place at a time, and tells how many changes the tests notice: about
# an hour on one core. `make mutants GROUPS=scores` takes one group, SAMPLE=N so many of each, JOBS=N so many cores.
mutants: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m reliability.mutants $(GROUPS) --jobs $(or $(JOBS),1) $(if $(SAMPLE),--sample $(SAMPLE))

# Faults under load, about 4 minutes, some as root alone; for longer, with other seeds: make chaos MINUTES=60.
chaos: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m reliability.chaos \
	    $(if $(MINUTES),--seconds $$(($(MINUTES) * 60)))

# All of it, and the page that tells of it: some three hours on two cores that do nothing else.
reliability: chaos fuzz soak mutants supply
	$(BIN)/python -m reliability.report

.cache/pip-tools/bin/pip-compile:
	$(PYTHON) -m venv .cache/pip-tools
	.cache/pip-tools/bin/python -m pip install --quiet --disable-pip-version-check pip-tools

clean:
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# One stamp an extra, so that `make serve` installs no test tools and the second call installs nothing.
# What is locked first; then torch, for whose build pip decides, and what a lock that is out of date does not have.
$(VENV)/.%: pyproject.toml requirements/%.txt
	@echo "installing what the extra '$*' needs into $(VENV): a minute or two, and some gigabytes for torch"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/$*.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
