# Everything a fresh machine needs is installed by these targets; see README.md.  `make help` lists them.
# The newest Python that is supported, and the oldest, if pyenv has them.
pyenv = $(lastword $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python))
PYTHON ?= $(or $(call pyenv,3.13),python3)
OLDEST_PYTHON ?= $(or $(call pyenv,3.10),python3)
# Redis's client is that of the time: a later one deadlocks in that Celery's.
OLDEST = 'celery==5.5.0' 'redis==5.2.1' 'tensorflow-cpu==2.16.*' 'keras==3.1.*'
# PyTorch without CUDA, where this machine has it or PyTorch's own index does, and a Python for which it is likely to.
TORCH = 'torch==2.13.0+cpu'
TORCH_PYTHON ?= $(or $(call pyenv,3.11),python3)
# Most tests wait for a worker most of the time.
PYTEST_OPTIONS ?= -n 4 --dist worksteal
VENV = .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test test-oldest test-backends lint conformance conformance-oldest conformance-baseline docs bench parity chaos storm fuzz soak transcript clean

help:  ## this list
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 22

# -- the main job: real predictions through a real worker, no server needed

demo: .venv/.demo  ## train a small model, start a real worker, print predictions and tasks per second
	@$(VENV) examples/quickstart/demo.py

.venv/.demo: setup.cfg pyproject.toml | .venv/bin/pip
	.venv/bin/pip install --quiet --editable '.[demo]'
	@touch $@

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# -- tests

test: .venv/.dev .venv-legacy/.done servers test-oldest test-backends  ## all tests with the newest of all, those of internals with the oldest, and other back ends
	$(VENV) -m pytest $(PYTEST_OPTIONS)

test-oldest: .venv-oldest/.done servers  ## those that touch Celery's and TensorFlow's internals, with the oldest of all
	.venv-oldest/bin/python -m pytest $(PYTEST_OPTIONS) tests/test_private_names.py tests/test_import_cost.py \
		tests/test_parity.py tests/test_pack.py tests/test_row_check.py tests/test_row_mixing.py tests/test_predictor_parity.py \
		tests/test_folding.py tests/test_whole_model.py tests/test_choose_pool.py tests/test_fork_guard.py \
		tests/test_prefork_features.py tests/test_sharing.py::test_shared tests/test_loading.py::test_eager \
		tests/test_loading.py::test_eager_load_that_takes_too_long \
		tests/test_loading.py::test_slow_load_in_first_and_replaced_children \
		tests/test_predictors.py::test_children_need_no_tensorflow tests/test_predictors.py::test_innocent_requests_survive

.venv/.dev: setup.cfg pyproject.toml | .venv/bin/pip
	.venv/bin/pip install --quiet --editable '.[dev]'
	@touch $@

.venv-oldest/.done: setup.cfg Makefile
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --editable '.[test]' $(OLDEST)
	@touch $@

test-backends: .venv-jax/.done .venv-torch/.done servers  ## Keras on JAX and on PyTorch, without TensorFlow
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest $(PYTEST_OPTIONS) tests/test_backends.py
	KERAS_BACKEND=torch .venv-torch/bin/python -m pytest $(PYTEST_OPTIONS) tests/test_backends.py

.venv-jax/.done: setup.cfg Makefile
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/pip install --quiet --editable '.[jax,test-tools]'
	@touch $@

.venv-torch/.done: setup.cfg Makefile
	$(TORCH_PYTHON) -m venv .venv-torch
	.venv-torch/bin/pip install --quiet $(TORCH) || \
		.venv-torch/bin/pip install --quiet --extra-index-url https://download.pytorch.org/whl/cpu $(TORCH)
	.venv-torch/bin/pip install --quiet --editable '.[torch,test-tools]'
	@touch $@

# Keras 2 and TensorFlow Hub, in a folder that only the tests of Keras 2 have on their path: they want another
# distribution of TensorFlow, and Keras 3 does without them.
.venv-legacy/.done: .venv/.dev Makefile
	.venv/bin/pip install --quiet --no-deps --upgrade --target .venv-legacy/site-packages \
		tf_keras==$$($(VENV) -c 'import importlib.metadata as m; print(m.version("tensorflow_cpu").rsplit(".", 1)[0])').* \
		tensorflow_hub 'setuptools<81'
	@touch $@

# Redis and RabbitMQ, which the tests start on free ports of their own, and a browser.
.PHONY: servers
servers:
	@sh tests/install-servers.sh

conformance: .venv/.conformance servers  ## Celery's own test suite with prefork replaced by this pool
	$(VENV) tests/conformance/run.py

conformance-oldest: .venv-oldest/.conformance servers  ## the same with the oldest of all
	.venv-oldest/bin/python tests/conformance/run.py

conformance-baseline: .venv/.conformance servers  ## the same with stock prefork
	$(VENV) tests/conformance/run.py --baseline

.venv/.conformance: .venv/.dev tests/conformance/requirements.txt
	.venv/bin/pip install --quiet -r tests/conformance/requirements.txt
	@touch $@

.venv-oldest/.conformance: .venv-oldest/.done tests/conformance/requirements.txt
	.venv-oldest/bin/pip install --quiet -r tests/conformance/requirements.txt
	@touch $@

# -- the rest

lint: .venv/.dev  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(VENV) -m mypy

docs: .venv/.dev  ## write docs/settings.md
	$(VENV) -c 'from celery_tfpool import settings_page; print(settings_page.markdown(), end="")' > docs/settings.md

bench: .venv/.dev servers  ## all suites, under 40 minutes; BENCH_OPTIONS=--quick: under 5
	$(VENV) benchmarks/bench.py all $(BENCH_OPTIONS)

parity: .venv/.dev  ## numbers of every model of the zoo beside Keras's
	$(VENV) benchmarks/parity.py

chaos: .venv/.dev servers  ## 5,000 tasks under which children and predictors are killed at random
	TFPOOL_CHAOS_TASKS=5000 $(VENV) -m pytest -n 0 -o timeout=1800 tests/test_predictor_chaos.py

fuzz: .venv/.dev  ## a million damaged messages
	TFPOOL_FUZZ_MESSAGES=1000000 $(VENV) -m pytest -n 0 -s -o timeout=1800 tests/test_fuzz.py

storm: .venv/.dev  ## 10,000 requests whose askers die or give up while they wait
	TFPOOL_STORM_REQUESTS=10000 $(VENV) -m pytest -n 0 -s -o timeout=1800 tests/test_company.py::test_storm

soak: .venv/.dev servers  ## ten minutes of steady load, and ten with a model that leaks: does any process grow, and would it be seen?
	$(VENV) benchmarks/bench.py soak $(BENCH_OPTIONS)

transcript: .venv/.dev .venv-oldest/.done servers  ## what hangs without the pool, and answers with it
	.venv-oldest/bin/python benchmarks/fork_hang.py
	$(VENV) benchmarks/fork_hang.py
	.venv-oldest/bin/python benchmarks/as_written.py
	$(VENV) benchmarks/as_written.py

clean:  ## remove what these targets made
	rm -rf .venv .venv-oldest .venv-jax .venv-torch .venv-legacy build *.egg-info
