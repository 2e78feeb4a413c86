# The ways to build, try and check belljar. `make run` and `make test` need the Rust toolchain and, for what else is missing,
# root on Debian; tools/setup.sh says what it installs and why, or names what is missing.

SHELL := /bin/bash
.DEFAULT_GOAL := run
PREFIX ?= /usr/local

NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
DENY := $(shell command -v cargo-deny 2>/dev/null)
TEST := $(if $(NEXTEST),cargo nextest run,cargo test)

.PHONY: run test check bench images install clean escape

## Builds belljar and shows what it does on a real project
run:
	@tools/setup.sh run
	cargo build --locked
	@examples/demo/run.sh target/debug/belljar

## All tests; they reach nothing outside this machine
test:
	@tools/setup.sh test
	@tests/tools/collector.sh
	$(TEST) --workspace --locked --no-fail-fast </dev/null

## The attacks alone, as a table: attack, backend, result
escape:
	@tools/setup.sh test
	@cargo test --locked --no-run --test escape
	@set -o pipefail; cargo test --quiet --locked --test escape -- --nocapture --test-threads=1 </dev/null 2>&1 | sed -u 's/^\.*|/|/' \
		| { printf '| %-40s | %-17s | result |\n|---|---|---|\n' attack backend; grep -E '^\||panicked at|FAILED|^test result'; }

## Formatting, lints, licences and advisories
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(if $(DENY),cargo deny check,@echo "cargo-deny is not installed: licences and advisories are not checked")

## Numbers, into target/bench/table.md
bench:
	@tools/setup.sh bench
	tools/bench.sh

## The images of this repository, into the store of this user
images:
	@tools/setup.sh images
	cargo build --locked
	@set -e; for recipe in base python node rust; do echo "== $$recipe"; target/debug/belljar image build $$recipe; done

install:
	cargo build --release --locked
	install -D -m 755 target/release/belljar $(DESTDIR)$(PREFIX)/bin/belljar

clean:
	cargo clean
