# The commands of this repository. The work is in scripts/, so each can be read and run on its own.

.DEFAULT_GOAL := help
.PHONY: help setup demo test check clean-cache

help:
	@echo "make demo         build pgferry and watch it carry a PostgreSQL database into DuckDB"
	@echo "make test         everything that decides whether a change may land"
	@echo "make check        the quick part of it: tidy, format, clippy"
	@echo "make setup        install what building needs (make test installs the test servers too)"
	@echo "make clean-cache  remove what setup downloaded"

setup:
	@scripts/setup

demo:
	@scripts/demo

test:
	@scripts/test

check:
	@scripts/setup
	@scripts/test check

clean-cache:
	@scripts/clean-cache
