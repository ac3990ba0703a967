# Every verb of the project; `make` alone lists them. CI runs `make test` and nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --warn-undefined-variables
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR):$(CURDIR)/gen
GOOGLEAPIS := .cache/googleapis
RELEASED := protos/released.binpb
JAEGER ?=
export JAEGER
CLUSTERS ?=
GATEWAYS ?=
export CLUSTERS GATEWAYS

help: ## Show this help.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.venv/.done: requirements/dev.txt
	@echo "setting up .venv (hashed requirements)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "KubeGems needs Python >= 3.11, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

setup: .venv/.done ## Make .venv with everything pinned and hashed.

lock: setup ## Compile requirements/*.in to hashed *.txt.
	@for name in runtime dev go; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url requirements/$$name.in -o requirements/$$name.txt; done

$(GOOGLEAPIS)/.done: .venv/.done
	@rm -rf $(GOOGLEAPIS) && mkdir -p $(GOOGLEAPIS)/google
	@site=$$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'); \
	  for part in api rpc; do mkdir -p $(GOOGLEAPIS)/google/$$part; done; \
	  cp $$site/google/api/{annotations,http,httpbody}.proto $(GOOGLEAPIS)/google/api/; \
	  cp $$site/google/rpc/{status,error_details,code}.proto $(GOOGLEAPIS)/google/rpc/
	@touch $@

gen: $(GOOGLEAPIS)/.done ## Generate gen/ from protos/.
	@$(call generate,gen)

# $(1) is the folder that is made anew.
define generate
  rm -rf $(1) && mkdir -p $(1)
  python -m grpc_tools.protoc -I protos -I $(GOOGLEAPIS) --python_out=$(1) --mypy_out=quiet:$(1) \
    --include_source_info --descriptor_set_out=.cache/protos.binpb $$(cd protos && find kubegems -name '*.proto' | sort)
  python -m grpc_tools.protoc -I protos -I $(GOOGLEAPIS) --grpc_python_out=$(1) --mypy_grpc_out=quiet,only_async:$(1) \
    $$(cd protos && find kubegems -name '*_service.proto' | sort)
  find $(1) -type d -exec touch {}/__init__.py \; && rm -f $(1)/__init__.py && touch $(1)/kubegems/py.typed
  python deploy/protos/comments.py <.cache/protos.binpb >$(1)/kubegems/comments.json
endef

viewer: .cache/viewer/.done ## Fetch the viewer that the gateway shows at /docs (needs npm).

.cache/viewer/.done: deploy/viewer/package.json deploy/viewer/package-lock.json
	@mkdir -p .cache/viewer && cp $^ deploy/viewer/.npmrc .cache/viewer/
	@cd .cache/viewer && npm ci --silent --no-audit --no-fund
	@touch $@

run: setup ## Start the platform here and keep it until Ctrl-C (JAEGER=1 adds traces, CLUSTERS=2 a second member cluster, GATEWAYS=2 a second gateway).
	@$(MAKE) viewer || echo "/docs comes without its viewer: make viewer did not work here"
	@exec python -m deploy.local run

stop: setup ## Stop the running platform and wait until nothing of it is left.
	@python -m deploy.local stop

status: setup ## Show what runs.
	@python -m deploy.local status

doctor: setup ## Show what is wrong with queues, jobs, streams and clusters' grants of the running platform.
	@python -m deploy.local doctor

clean: setup ## Remove the platform's data (.local).
	@python -m deploy.local clean

admin-password: setup ## Set a new password for the platform admin and print it.
	@python -m deploy.local admin-password

walkthrough: setup ## Run the README's walk-through against the running platform.
	@python -m deploy.local.walkthrough --env .local/env

pages: setup ## Renew the pages that are made from code: docs/rights.md, docs/errors.md.
	@python -m services.gateway.identity.matrix > docs/rights.md
	@python -m tests.contract.errors_page > docs/errors.md

check: check-python check-protos ## Every check that runs nothing: style, types, layers, protos, generated code.

check-python: setup
	@ruff check . && ruff format --check --quiet .
	@mypy
	@lint-imports --no-cache | tail -n 12

check-protos: $(GOOGLEAPIS)/.done
	@buf lint protos && buf format protos --diff --exit-code
	@buf breaking protos --against $(RELEASED)
	@$(call generate,.cache/gen)
	@diff -r --exclude=__pycache__ --brief .cache/gen gen || { echo "gen/ is stale: run make gen"; exit 1; }

programs: setup ## Build the control plane, the node simulator and Jaeger, once, into the user's cache.
	@python -m deploy.local.build

test: check programs ## Everything CI runs: the checks, then unit, contract, integration and e2e tests.
	@python -m pytest -q

bench: setup ## Measure what we promise; one JSON line per figure.
	@python -m tests.bench

chaos: setup ## Kill everything at random under 10,000 jobs, 100 broken links and 100,000 changes; CI runs a seeded part.
	@python -m tests.chaos.jobs
	@python -m tests.chaos.link
	@KUBEGEMS_CHAOS_CHANGES=$${KUBEGEMS_CHAOS_CHANGES:-100000} python -m pytest -q -s tests/chaos/push

fmt: setup ## Format Python and protos.
	@ruff check --fix --quiet . || true
	@ruff format . && buf format protos --write

release-api: $(GOOGLEAPIS)/.done ## Take the protos as they are as the API that must not break.
	@buf build protos --exclude-source-info --output $(RELEASED)

.PHONY: help setup lock gen programs viewer run stop status doctor clean admin-password walkthrough pages check check-python check-protos test bench chaos fmt release-api
