# Everything a person or a machine runs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow bench-speed bench-roofline bench-forms bench-loading bench-curves check format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --cov=hetecd --cov-fail-under=90 --cov-report=term:skip-covered

test-slow: install
	$(BIN)/pytest -m slow

bench-speed: install
	$(BIN)/python benchmarks/speed.py

bench-roofline: install
	$(BIN)/python benchmarks/roofline.py

bench-forms: install
	$(BIN)/python benchmarks/forms.py

# These two train on real tiles: make bench-loading DATA=ombria
bench-loading: install
	$(BIN)/python benchmarks/loading.py $(DATA)

bench-curves: install
	$(BIN)/python benchmarks/curves.py $(DATA)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo runs build dist *.egg-info
