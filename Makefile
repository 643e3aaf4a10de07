# Each target is one line of prose in `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
environment ?= local
playbook := .venv/bin/ansible-playbook
# Python compiles what it imports once. Some machines switch that off, and then each start of a module takes twice as long.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup deploy verify clean test lint unit readmes lock-requirements

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

readmes: ## Write the variable tables of the roles' READMEs from their argument specs
	@./setup.sh dev
	@.venv/bin/python tests/render_role_readmes.py

lock-requirements: setup ## Resolve requirements/*.in into hash-locked requirements/*.txt
	@for name in bootstrap controller dev; do \
	    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	        --custom-compile-command 'make lock-requirements' requirements/$$name.in -o requirements/$$name.txt >/dev/null; \
	done
