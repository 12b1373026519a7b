# make demo    the first minute: a recorded call, transcribed live (ASTERISK=1: through an Asterisk)
# make test    all tests (those of the Kyutai engine after make kyutai)
# make kyutai  the Kyutai engine into .venv too: torch and moshi, 7 GB
# make lint    ruff and mypy --strict
# make soak    slow tests
# make asterisk-lab   a real Asterisk 22 for tests/asterisk, in a directory of its own (root)
# make bench   the numbers of BENCHMARKS.md

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/.ready

.PHONY: demo test kyutai lint soak asterisk-lab bench clean

demo: $(READY)
	@$(BIN)/callscribe demo $(if $(ASTERISK),--asterisk)

test: $(READY)
	$(BIN)/python -m pytest -m "not soak and not gpu" -n 3 --dist loadgroup

kyutai: .venv/.kyutai

soak: $(READY)
	$(BIN)/python -m pytest -m soak --timeout 1800

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict bridge

asterisk-lab:
	.ci/asterisk-lab

bench: $(READY)
	$(BIN)/callscribe bench media --keepalive 1s
	$(BIN)/callscribe bench media --keepalive 1s --loop asyncio
	$(BIN)/callscribe bench media
	$(BIN)/callscribe bench churn
	$(BIN)/callscribe bench outbox
	test ! -e .venv/.kyutai || $(BIN)/callscribe bench engine

$(READY): pyproject.toml .ci/venv
	@.ci/venv $(PYTHON)

.venv/.kyutai: $(READY)
	@.ci/venv $(PYTHON) kyutai,bench
	@touch $@

clean:
	rm -rf .venv
