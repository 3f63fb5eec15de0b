# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
#
# The targets that a person types; how they are done is in build.mk.
#
#   make V=1             show the commands
#   make WERROR=1        stop at a compiler's warning
#   make SANITIZER=X     build with address, undefined or thread sanitizer
#   make PREFIX=/usr     where `make install` puts things (also DESTDIR)

all: filter            ## build both filters, into build/

include build.mk

demo: run-demo         ## install what is missing, build, and tell the story of a clone

bench: run-bench       ## measure what scanning is worth (FULL=1: for hours)

bench-costs: run-bench-costs ## measure what it costs: instructions, memory

bench-boot: run-bench-boot ## boot a guest over slow lines (hours; BOOT=--help)

bench-truth: run-bench-truth ## compare the simulator with that (TRUTH=--help)

check: run-check       ## run all tests (4 minutes)

check-unit: run-check-unit ## run the C unit tests only

check-lua: run-check-lua ## run the Lua specs only

check-asan: run-check-asan ## run the tests with the address and undefined sanitizers

check-tsan: run-check-tsan ## run the tests with the thread sanitizer

check-valgrind: run-check-valgrind ## run the tests under valgrind

check-matrix: run-check-matrix ## run the tests on each Debian, in chroots (root; 10 minutes)

check-restore: run-check-restore ## run a guest from a remote disk until it is local (5 minutes)

check-upstream: run-check-upstream ## which faults of nbdkit's own layers the installed one has

soak: run-soak         ## everything at once, for 20 minutes or HOURS=N

fuzz: run-fuzz         ## run the fuzz targets, FUZZ_SECONDS=20 each

lint: run-lint         ## check the Lua, shell and C sources for mistakes

install: run-install   ## install the filter, its policies, tools and pages

deb: run-deb           ## build a Debian package, into build/deb

rpm: run-rpm           ## build an rpm for Fedora and its kin, into build/rpm

uninstall: run-uninstall ## remove them and bring back what was there before

clean:                 ## remove everything that was built
	rm -rf build

help:                  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

.PHONY: all filter demo bench bench-costs bench-boot bench-truth check check-unit \
	check-lua check-asan check-tsan check-valgrind check-matrix check-restore check-upstream \
	fuzz soak lint install deb rpm uninstall clean help
