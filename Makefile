# Short names. Each does all its own set-up; as root, or with sudo.
PHPTRACE_VENV ?= /opt/phptrace/venv
VENV := $(PHPTRACE_VENV)
export PHPTRACE_VENV

.PHONY: demo test slow check lint bench format

demo:
	vagrant/demo/run

test:
	tests/run

slow:
	tests/run -m slow

check: lint
	$(VENV)/bin/python -m pytest -q tests/unit

lint: $(VENV)/bin/ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	clang-format --dry-run -Werror bpf/*.h bpf/*.c

bench:
	benchmarks/run

format: $(VENV)/bin/ruff
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	clang-format -i bpf/*.h bpf/*.c

$(VENV)/bin/ruff: pyproject.toml
	vagrant/provision.sh --dev
	touch $@
