# The commands of the project; each makes the environment it needs.
PYTHON ?= python3
PORT ?= 8000
DATA ?= ../shared/data
PROCESSES ?= 1
ARTIFACTS ?= fashion-mnist breast-cancer
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test check format artifacts bench-engine bench-engine-cuda bench-conditioners bench-plane bench-adbench bench-why \
    bench-anomalies bench-bulk bench-drift bench-explanations bench-false-alarms bench-fold-calibration bench-json bench-serving \
    bench-overload bench-idle clean

serve: $(VENV)/.serve
	GLOW_CACHE_DIR=$${GLOW_CACHE_DIR-.cache} $(BIN)/python -m service --port $(PORT)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

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

# Tables of what was measured; docs/results.md tells what each is.
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
	    $(if $(wildcard $(DATA)/fashion-mnist),--data $(DATA)/fashion-mnist) --out benchmarks/why_a_flow/RESULTS.md

# The service under load (wrk is needed): beside its peers, about 9 minutes; above its peak; beside idle connections.
bench-serving: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving

bench-overload: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving.overload

bench-idle: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.serving.idle

clean:
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# One stamp an extra, so that `make serve` installs no test tools and the second call installs nothing.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
