# The verbs of the project. `make` alone builds.
#
#   make setup       install the Debian packages (a second run takes a second)
#   make build       build/bin/omnitrain and the tests, optimised
#   make quickstart  setup, build, make data, train, evaluate: all on this machine's CPU
#   make test        every test not labelled gpu or slow
#   make bench       the benchmarks (minutes)
#   make tsan asan   the tests of the parts that share memory or parse, under sanitizers
#   make fuzz        each fuzz target for FUZZ_SECONDS (default 60)
#   make dist        dist/omnitrain-VERSION.tar.zst, runs without these packages
#   make format      clang-format everything
#   make clean

SHELL := /bin/bash
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60
RUN_DIR ?= runs/quickstart
SEED ?= 1

.PHONY: build setup configure quickstart test bench tsan asan fuzz dist format clean

build: configure
	cmake --build build -j $(JOBS)

configure:
	@[ -f build/build.ninja ] || cmake --preset release

setup:
	@tools/setup.sh

quickstart: setup
	@tools/quickstart.sh "$(RUN_DIR)" "$(SEED)"

test: build
	ctest --test-dir build --output-on-failure -LE 'gpu|slow' -j $(JOBS)

bench: build
	@tools/bench/run.sh

asan tsan:
	cmake --preset $@
	cmake --build build-$@ -j $(JOBS) --target sanitizer_tests
	tools/sanitize.sh $@

fuzz:
	cmake --preset fuzz
	cmake --build build-fuzz -j $(JOBS) --target fuzzers
	tools/fuzz.sh build-fuzz $(FUZZ_SECONDS)

dist: build
	tools/dist.sh

format:
	git ls-files '*.h' '*.cc' | xargs clang-format-14 -i

clean:
	rm -rf build build-* dist
