# Each target is one line of prose in `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
environment ?= local
playbook := .venv/bin/ansible-playbook
# Ansible forks a process for each task and host: without cached bytecode every one of them compiles its imports again.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache

.PHONY: help setup deploy verify clean test lint unit bench drill drill-rebuild readmes lock lock-export lock-requirements

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make the virtual environment in .venv (the other targets do it by themselves)
	@./setup.sh

deploy: setup ## Bring the whole system up on this machine, or bring it up to date (environment=local)
	@$(playbook) deploy.yml -l $(environment)

verify: setup ## Prove end to end that the running system does its work
	@$(playbook) playbooks/verify.yml -l $(environment)

clean: setup ## Remove exactly what `make deploy` made on this machine
	@$(playbook) playbooks/clean.yml -l $(environment)

test: ## Run every check of this repository: lint, unit, Molecule, fleet, browser
	@tests/run

lint: ## Run the linters alone
	@tests/run lint

unit: ## Run the unit tests alone
	@tests/run unit

bench: ## Measure against peers on this machine (build/bench/*.json; bench=NAME for one of conda, serving, gateway, batch, reload)
	@./setup.sh dev
	@status=0; for name in $(or $(bench),conda serving gateway batch reload); do .venv/bin/python tests/bench/$$name.py || status=1; done; exit $$status

drill: ## Break a running system on purpose, under load, and see who notices (build/drills/*.json; drill=NAME for one)
	@./setup.sh dev
	@.venv/bin/python tests/drills/run.py --environment $(environment) $(drill)

drill-rebuild: ## Terminate hosts of every fleet, then all, and bring them back (build/drills/rebuild.json)
	@$(MAKE) --no-print-directory drill drill=rebuild

readmes: ## Write the variable tables of the roles' READMEs from their argument specs
	@./setup.sh dev
	@.venv/bin/python tests/render_role_readmes.py

lock: setup ## Lock the Conda environments of files/conda (conda=NAME for one, upgrade=PACKAGE to change just that)
	@$(playbook) playbooks/lock.yml $(if $(conda),-e conda=$(conda)) $(if $(upgrade),-e upgrade=$(upgrade))

lock-export: setup ## Render Conda locks for conda, mamba and micromamba into build/conda (conda=NAME for one)
	@$(playbook) playbooks/lock_export.yml $(if $(conda),-e conda=$(conda))

lock-requirements: setup ## Resolve requirements/*.in into hash-locked requirements/*.txt
	@for name in bootstrap controller conda_tools dev bench_flask bench_mlserver bench_bentoml bench_pandas; do \
	    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	        --custom-compile-command 'make lock-requirements' requirements/$$name.in -o requirements/$$name.txt >/dev/null; \
	done
