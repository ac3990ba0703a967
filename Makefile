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
	@rm -rf gen && mkdir -p gen
	@python -m grpc_tools.protoc -I protos -I $(GOOGLEAPIS) --python_out=gen --mypy_out=quiet:gen \
	  $$(cd protos && find kubegems -name '*.proto' | sort)
	@python -m grpc_tools.protoc -I protos -I $(GOOGLEAPIS) --grpc_python_out=gen --mypy_grpc_out=quiet,only_async:gen \
	  $$(cd protos && find kubegems -name '*_service.proto' | sort)
	@find gen -type d -exec touch {}/__init__.py \; && rm -f gen/__init__.py && touch gen/kubegems/py.typed
.PHONY: help setup lock gen
