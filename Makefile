# Everything a person or a machine runs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
# A plain path: scripts beside a clone would otherwise import its folder, which has the name of the package.
EDITABLE := --config-settings editable_mode=compat
QUICK = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

.PHONY: install demo report-picture test coverage test-browser test-slow bench-speed bench-roofline bench-forms \
	bench-loading bench-scene bench-curves bench-elsewhere bench-accuracy bench-accuracy-torchgeo bench-align check \
	format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(EDITABLE) -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py demo

# The picture of a report in the README, after `make demo`; needs chromium.
report-picture: install
	$(BIN)/python examples/screenshot.py demo/map/report.html docs/report.png

test: install
	$(QUICK)

# The same, and which lines no test reaches: a tenth slower.
coverage: install
	$(QUICK) --cov=hetecd --cov-fail-under=90 --cov-report=term:skip-covered

# The page of a report in a real browser: needs chromium and chromedriver (Debian: chromium, chromium-driver).
test-browser: install
	$(BIN)/pytest tests/test_browser.py tests/test_serve_browser.py tests/test_run_report_browser.py

test-slow: install
	$(BIN)/pytest -m slow

bench-speed: install
	$(BIN)/python benchmarks/speed.py

bench-roofline: install
	$(BIN)/python benchmarks/roofline.py

bench-forms: install
	$(BIN)/python benchmarks/forms.py

bench-scene: install
	$(BIN)/python benchmarks/scenes.py

# These two train on real tiles: make bench-loading DATA=ombria
bench-loading: install
	$(BIN)/python benchmarks/loading.py $(DATA)

bench-curves: install
	$(BIN)/python benchmarks/curves.py $(DATA)

# DATA: folder with pairs/ and scene_la/; WEIGHTS: other checkpoints than the one that comes along.
bench-elsewhere: install
	$(BIN)/python benchmarks/elsewhere.py $(WEIGHTS) --data $(DATA)

# Accuracy: make bench-accuracy PROTOCOL=blocks DATA=ombria ROWS="quick boosting" SEEDS="0 1 2" OPTIONS="--epochs 20"
# PROTOCOL is public, blocks, pairs (DATA: folder of scenes) or synthetic (no DATA); without ROWS all rows.
PROTOCOL ?= public
SEEDS ?= 0 1 2
ACCURACY = benchmarks/accuracy.py $(PROTOCOL) $(if $(DATA),--data $(DATA)) $(if $(ROWS),--rows $(ROWS)) \
	--seeds $(SEEDS) $(OPTIONS)

bench-accuracy: install
	$(BIN)/python $(ACCURACY)

# The rows of torchgeo; the tables of both go into the same folder.
bench-accuracy-torchgeo: ROWS ?= fc-siam-conc fc-siam-diff changevit
bench-accuracy-torchgeo: .venv-torchgeo/installed
	.venv-torchgeo/bin/python $(ACCURACY)

# torchgeo itself comes without what it asks for: most of that is for its data sets, and some does not install.
.venv-torchgeo/installed: pyproject.toml constraints.txt benchmarks/torchgeo.txt
	$(PYTHON) -m venv .venv-torchgeo
	.venv-torchgeo/bin/pip install --quiet --disable-pip-version-check $(EDITABLE) -c constraints.txt -e . -r benchmarks/torchgeo.txt
	.venv-torchgeo/bin/pip install --quiet --disable-pip-version-check --no-deps torchgeo==0.8.1
	touch $@

# Registration: make bench-align DATA=scene_la; SimpleITK, for comparison, lives beside.
bench-align: .venv-simpleitk/installed
	.venv-simpleitk/bin/python benchmarks/align.py $(if $(DATA),--data $(DATA))

.venv-simpleitk/installed: pyproject.toml constraints.txt benchmarks/simpleitk.txt
	$(PYTHON) -m venv .venv-simpleitk
	.venv-simpleitk/bin/pip install --quiet --disable-pip-version-check $(EDITABLE) -c constraints.txt -e . -r benchmarks/simpleitk.txt
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-torchgeo .venv-simpleitk demo runs build dist *.egg-info
