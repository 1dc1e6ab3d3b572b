# The two commands of the README. Both set everything up first; a set-up that is done costs under a second.
PYTHON ?= python3
.PHONY: demo test docs setup lint

demo: setup
	.venv/bin/python scripts/sweep.py launch demo --cluster local

test: NEEDS = slurm browser
test: setup lint
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests

# The manual, into site/, from docs/ and the source, without a network. The variable silences its theme's advertisement.
docs: setup
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet
	@echo "the manual: site/index.html"

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

setup:
	@PYTHON=$(PYTHON) bash scripts/setup.sh $(NEEDS)
