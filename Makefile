# `make serve` and `make test` install what they need first; nothing else is to be set up by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard protos/*.proto)

.PHONY: install serve test test-slow lint format protos check-protos demo-model family-table bench bench-peers clean

install: $(STAMP)

# The last line compiles the CPU kernels; without a compiler models run on torch alone.
# constraints.txt names tested versions; the build of torch is whatever the machine's index offers for it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	-$(BIN)/python -m worker.native.build
	touch $(STAMP)

# make serve MODEL=/path/to/model ARGS="--port 9000"
serve: install
	$(BIN)/shoal serve $(MODEL) $(ARGS)

test: install
	$(BIN)/python -m pytest -q -m "not slow and not chaos and not gpu and not clients" $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -q -m "slow or chaos" --timeout 900 $(ARGS)

lint: install check-protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy protos/block_hash.py protos/channel.py protos/garbage.py worker cluster gateway

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

define GENERATE
$(BIN)/python -m grpc_tools.protoc -I. --python_out=$(1) --grpc_python_out=$(1) \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:$(1) \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

protos: install
	$(call GENERATE,.)

# The committed stubs are what the definitions generate.
check-protos: install
	@rm -rf build/protos && mkdir -p build/protos
	@$(call GENERATE,build/protos)
	@for f in build/protos/protos/*; do cmp $$f protos/$$(basename $$f) || exit 1; done

# Measures every model family against transformers and writes the table.
family-table: install
	$(BIN)/python -m pytest -q tests/worker/models --family-table worker/models/families/README.md

demo-model: install
	$(BIN)/python -m worker.demo.train

bench: install
	$(BIN)/python -m benchmarks.run $(ARGS)

# Beside other servers, which benchmarks/README.md says how to set up:
# make bench-peers ARGS="--peers peers.json --models-dir models"
bench-peers: install
	$(BIN)/python -m benchmarks.peers $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
