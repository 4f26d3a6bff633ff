# The usual commands. Each expects the environment of CONTRIBUTING.md to be active.
.PHONY: help install test lint docs bench supply clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

install: ## install everything for development, editable
	python -m pip install -e ".[dev]"

test: ## the short list of tests
	python -m pytest

lint: ## ruff, mypy, clang-format, codespell
	ruff check .
	ruff format --check .
	mypy
	git ls-files "*.h" "*.cpp" "*.cu" "*.cuh" | xargs clang-format --dry-run --Werror
	codespell

docs: ## build the documentation into build/site, and check that it loads nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	python tools/check_site.py build/site

bench: ## measure the operators and the model; takes long
	python -m pytest benchmarks

supply: ## licences, SBOM and known vulnerabilities of the environment's packages, into build/supply
	.ci/supply

clean: ## remove what builds, tests and linters leave
	rm -rf build dist *.egg-info showface/_C*.so showface/_build.json .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
