# Needs python3 (3.11 to 3.13) and make, nothing else.
PYTHON ?= python3
RUN = .venv/bin/python
# What runs the commands, the notebook and the guests of the documentation, draws pages and looks at them.
PAGES = tests/test_commands.py tests/test_guests.py tests/test_notebook.py \
  tests/test_walks.py tests/analysis/test_explain.py tests/analysis/test_browser.py

.PHONY: quickstart test test-all test-compile test-torch test-pages mutants lint docs bench package clean .venv

quickstart: .venv/done  ## Train on real digits, then look inside a network for photographs: no download, minutes.
	$(RUN) -m alexnet_jax train --config=quickstart --workdir=runs/quickstart
	$(RUN) -m alexnet_jax report --workdir=runs/quickstart
	$(RUN) -m alexnet_jax explain --weights=imagenette --out=runs/quickstart/photograph.html docs/photograph.jpg

test: .venv/done  ## Run the tests, without those of test-pages: ten minutes on two cores.
	$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PAGES:%=--ignore=%)

test-all: .venv/done .axe/axe.min.js  ## Run the slow tests too: a quarter of an hour on two cores.
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not compile and not torch'

test-compile: .venv-compile/done  ## Compile for GPUs and TPUs that are not here: 1.4 GB, minutes.
	.venv-compile/bin/python -m pytest -m compile tests/compile

test-torch: .venv/done benchmarks/.venv/done  ## Run exported modules in PyTorch, which is installed beside the project.
	$(RUN) -m pytest -m torch tests/weights/test_torch.py

test-pages: .venv/done .axe/axe.min.js  ## Run the examples of the documentation and look at pages in Chromium.
	$(RUN) -m pytest -m 'slow or not slow' tests/test_docs.py tests/test_device.py
	$(RUN) -m pytest -n 2 --dist loadfile $(PAGES)

mutants: .venv/done  ## Make one-line mistakes, one at a time: each must fail a test.
	$(RUN) -m tests.mutants.run

lint: .venv/done  ## Check style and types.
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

docs: .venv/done  ## Build the documentation into site/, warnings as errors.
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

bench: .venv/done benchmarks/.venv/done  ## Time the step beside PyTorch, TensorFlow, plain Flax.
	$(RUN) benchmarks/run.py --torch_python=$(CURDIR)/benchmarks/.venv/bin/python

package: .venv-package/done  ## Build dist/*.whl and dist/*.tar.gz, and check both as PyPI would.
	rm -rf dist *.egg-info
	.venv-package/bin/python -m build --outdir dist .
	rm -rf *.egg-info
	.venv-package/bin/python -m twine check --strict dist/*
	.venv-package/bin/check-wheel-contents dist/*.whl

.venv: .venv/done

# The last line marks a whole environment: an install that was cut short is done again.
.venv/done: requirements.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
	  "Python 3.11 to 3.13 is needed, this is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2])'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

# PyTorch alone: the other peers run in the project's own environment.
benchmarks/.venv/done: benchmarks/requirements.txt
	rm -rf benchmarks/.venv
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet -r benchmarks/requirements.txt
	touch $@

# Tools that build and check a package, in an environment that nothing else sees.
.venv-package/done: Makefile
	rm -rf .venv-package
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet build==1.6.1 twine==7.0.0 check-wheel-contents==0.6.3
	touch $@

# What finds barriers in pages. Without npm or a connection its tests are skipped, but not in CI.
.axe/axe.min.js: Makefile
	mkdir -p .axe
	-cd .axe && npm pack --silent axe-core@4.14.1 && tar -xzmf axe-core-4.14.1.tgz --strip-components=1

# What compiles for other devices, beside the packages of .venv, which do not see it: JAX would look
# for GPUs and TPUs in every other test.
.venv-compile/done: .venv/done pyproject.toml
	rm -rf .venv-compile
	$(PYTHON) -m venv .venv-compile
	$(RUN) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
	  > "$$(.venv-compile/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/beside.pth"
	.venv-compile/bin/python -m pip install --quiet "jax[cuda13-local]" "jax[tpu]" nvidia-cuda-nvcc nvidia-nvvm
	touch $@

clean:  ## Remove the environments and the caches, not the runs.
	rm -rf .venv .venv-compile .venv-package benchmarks/.venv .axe build dist *.egg-info site .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
