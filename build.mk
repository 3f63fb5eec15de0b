# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
#
# Flags, lists and rules.  Included by the Makefile.

# -- tools and where things are ------------------------------------------------

PKG_CONFIG ?= pkg-config
# Lua 5.4 has its version in its name, or not where it is the only one.
LUA        ?= $(if $(shell command -v lua5.4),lua5.4,lua)
PREFIX     ?= /usr

CFLAGS     ?= -O2 -g
SANITIZER  ?=

ifneq ($(SANITIZER),)
ifeq ($(filter $(SANITIZER),address undefined thread address-undefined),)
$(error SANITIZER=$(SANITIZER) is not known; use address, undefined, \
        address-undefined or thread)
endif
endif

# One directory a variant, so that their objects never mix.  Variables of a thread are a
# part of it here: what glibc gets for those of a library that is loaded later, and gives
# back, looks like a race to the thread sanitizer.
comma := ,
ifeq ($(SANITIZER),)
B := build
else
B := build/$(SANITIZER)
SANITIZER_FLAGS := -fsanitize=$(subst -,$(comma),$(SANITIZER)) \
                   -fno-omit-frame-pointer -ftls-model=initial-exec
endif

PLAIN_CFLAGS := -std=gnu11 -D_GNU_SOURCE -fPIC -pthread \
	-Wall -Wextra -Wshadow -Wvla -Wno-unused-parameter
# Offsets in files have 64 bits, also where a long has 32.  Libraries to preload stand
# for the functions of both kinds, and are built without this.
PROJECT_CFLAGS := $(PLAIN_CFLAGS) -D_FILE_OFFSET_BITS=64 \
	-Wstrict-prototypes -Wmissing-prototypes \
	-fvisibility=hidden $(SANITIZER_FLAGS)
ifeq ($(WERROR),1)
PROJECT_CFLAGS += -Werror
endif

# Asked only by the rules that need them, so that `make help` needs nothing.
NBDKIT_CFLAGS = $(shell $(PKG_CONFIG) --cflags nbdkit)
LUA_PC        = $(firstword $(foreach pc,lua5.4 lua-5.4 lua,$(shell \
	$(PKG_CONFIG) --exists '$(pc) >= 5.4 $(pc) < 5.5' && echo $(pc))))
LUA_CFLAGS    = $(shell $(PKG_CONFIG) --cflags $(LUA_PC))
LUA_LIBS      = $(shell $(PKG_CONFIG) --libs $(LUA_PC))

# Filters have one place, whatever the PREFIX: nbdkit looks nowhere else.
FILTERDIR     = $(shell $(PKG_CONFIG) --variable=filterdir nbdkit)
BINDIR        = $(PREFIX)/bin
LUADIR        = $(PREFIX)/share/lua/5.4
DATADIR       = $(PREFIX)/share/nbdkit-scan-filter-lua
MANDIR        = $(PREFIX)/share/man
DOCDIR        = $(PREFIX)/share/doc/nbdkit-scan-filter-lua
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions

ifneq ($(V),1)
Q := @
SAY = @printf '  %-7s %s\n' '$(1)' '$(2)'
endif

# -- what the filters are made of ----------------------------------------------

# A folder is a unit: what lies in it is built, embedded or installed with it.
common_sources := $(sort $(wildcard filter/common/*.c))
scan_sources  := $(sort $(wildcard filter/scan/*.c filter/policy/*.c \
	filter/report/*.c)) $(common_sources)
clone_sources := $(sort $(wildcard filter/clone/*.c)) $(common_sources)

# Texts that are compiled into the scan filter; lua/kit/ is for authors only.
embedded_lua := filter/policy/boot.lua \
	$(sort $(wildcard lua/runtime/scan/*.lua lua/library/scan/*.lua policies/*.lua))

scan_objects  := $(scan_sources:%.c=$(B)/%.o) $(B)/embedded.o
clone_objects := $(clone_sources:%.c=$(B)/%.o)

# What runs policies: programs that test or measure that link only these.
vm_objects := $(patsubst %.c,$(B)/%.o, \
	$(sort $(wildcard filter/policy/*.c)) filter/common/escape.c) $(B)/embedded.o

# A unit's own folder comes first for its own files; others say which unit they mean
# where two have a header of one name.
INCLUDES := -Ifilter $(addprefix -Ifilter/,common scan policy report clone)

# -- the filter ----------------------------------------------------------------

filters := $(B)/nbdkit-scan-filter.so $(B)/nbdkit-clone-filter.so

filter: $(filters)

define link_filter
	$(call SAY,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(LDFLAGS) -shared \
	  -Wl,--version-script=filter/common/filter.syms \
	  $(filter %.o,$^) $(1) -o $@
endef

$(B)/nbdkit-scan-filter.so: $(scan_objects) filter/common/filter.syms
	$(call link_filter,$(LUA_LIBS))

$(B)/nbdkit-clone-filter.so: $(clone_objects) filter/common/filter.syms
	$(call link_filter)

$(B)/filter/%.o: filter/%.c $(B)/have-packages
	$(call SAY,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(PROJECT_CFLAGS) $(NBDKIT_CFLAGS) \
	  $(LUA_CFLAGS) $(INCLUDES) -MMD -MP -c $< -o $@

$(B)/embedded.o: $(B)/embedded.c
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(INCLUDES) -c $< -o $@

$(B)/embedded.c: filter/policy/embed.lua $(embedded_lua)
	$(call SAY,EMBED,$@)
	@mkdir -p $(@D)
	$(Q)$(LUA) filter/policy/embed.lua $(embedded_lua) > $@.tmp
	$(Q)mv $@.tmp $@

# Say plainly what is missing.  The file holds the versions that are built against.
# They are looked at each time, as nbdkit refuses what was built for another one; only
# when they are others is it written, and what depends on it built again.
$(B)/have-packages: always
	@mkdir -p $(@D)
	@$(PKG_CONFIG) --exists nbdkit || { \
	  echo 'nbdkit.pc is missing: apt-get install nbdkit-plugin-dev' >&2; \
	  exit 1; }
	@test -n '$(LUA_PC)' || { \
	  echo 'lua5.4.pc is missing: apt-get install liblua5.4-dev' >&2; \
	  exit 1; }
	@versions=$$($(PKG_CONFIG) --modversion nbdkit $(LUA_PC) | tr '\n' ' '); \
	[ "$$versions" = "$$(cat $@ 2>/dev/null)" ] || printf '%s' "$$versions" > $@

always:
.PHONY: always

# -- tests ---------------------------------------------------------------------

# Plugins, and libraries to preload, for tests/e2e.
test_objects := \
	$(patsubst tests/plugins/%.c,build/tests/nbdkit-%-plugin.so, \
	  $(wildcard tests/plugins/*.c)) \
	$(patsubst tests/preload/%.c,build/tests/%.so,$(wildcard tests/preload/*.c)) \
	build/tests/map-dump

build/tests/nbdkit-%-plugin.so: tests/plugins/%.c $(B)/have-packages
	$(call SAY,PLUGIN,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PLAIN_CFLAGS) $(NBDKIT_CFLAGS) -shared $< -o $@

build/tests/%.so: tests/preload/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PLAIN_CFLAGS) -shared $< -ldl -o $@

# A map of the clone filter, without the filter.
map_units := $(addprefix clone/,map map-file crc32c disk)

# Says what one holds.
build/tests/map-dump: tests/clone/map-dump.c $(map_units:%=build/filter/%.o)
	$(call SAY,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PLAIN_CFLAGS) $(NBDKIT_CFLAGS) $(INCLUDES) $^ -o $@

# C programs, each from tests/unit/test-NAME.c and what it tests.  STUB_WRAP lets
# stubs.c make allocations and threads fail.
unit_names := $(patsubst tests/unit/test-%.c,%,$(wildcard tests/unit/test-*.c))
unit_tests := $(unit_names:%=$(B)/tests/unit-%)

unit_objects = $(1:%=$(B)/filter/%.o) $(B)/tests/unit/stubs.o
STUB_WRAP := $(addprefix -Wl$(comma)--wrap=, \
	asprintf calloc free malloc pthread_create realloc strdup)

$(B)/tests/unit-budget: $(call unit_objects,scan/budget)
$(B)/tests/unit-clone-bits: $(call unit_objects,$(filter-out clone/map,$(map_units)))
$(B)/tests/unit-clone-claims: $(call unit_objects,clone/claims $(map_units))
$(B)/tests/unit-clone-exports: $(call unit_objects,clone/exports clone/outage common/escape)
$(B)/tests/unit-clone-map: $(call unit_objects,$(map_units))
$(B)/tests/unit-counters-file: $(call unit_objects,common/counters-file common/file-mode)
$(B)/tests/unit-guard: $(call unit_objects,scan/guard)
$(B)/tests/unit-escape: $(call unit_objects,common/escape)
$(B)/tests/unit-pace: $(call unit_objects,scan/pace)
$(B)/tests/unit-pace-events: $(call unit_objects,scan/pace)
$(B)/tests/unit-map: $(call unit_objects,scan/map)
$(B)/tests/unit-library: $(call unit_objects,policy/library) $(B)/embedded.o
$(B)/tests/unit-reads: $(call unit_objects,scan/reads scan/map)
$(B)/tests/unit-recorder: $(call unit_objects,scan/recorder scan/journal \
	common/escape common/file-mode)
$(B)/tests/unit-results: $(call unit_objects,scan/results)
$(B)/tests/unit-rows: $(call unit_objects,policy/rows)
$(B)/tests/unit-scanner: $(call unit_objects,scan/scanner scan/looker scan/workers scan/steps \
	scan/fetch scan/failures scan/results scan/opening scan/ticket scan/budget \
	scan/line scan/pace scan/guard scan/reads \
	scan/source scan/map scan/recorder scan/journal common/file-mode report/stats) \
	$(vm_objects)
$(B)/tests/unit-stats: $(call unit_objects,report/stats)
$(B)/tests/unit-vm: $(call unit_objects,) $(vm_objects)

# What the simulator's pace in Lua makes of transfers, for the one in C to be compared
# with.  Only read by the test, so nothing is linked anew for it.
pace_events := $(B)/tests/pace.events
$(B)/tests/unit/test-pace-events.o: CPPFLAGS += -DPACE_EVENTS='"$(pace_events)"'
$(B)/tests/unit-pace-events: | $(pace_events)

$(pace_events): tests/unit/pace-events.lua $(addprefix lua/kit/scan/,pace.lua events.lua)
	$(call SAY,LUA,$@)
	@mkdir -p $(@D)
	$(Q)$(LUA) $< > $@.tmp
	$(Q)mv $@.tmp $@

# What is done while a lock is held.
$(B)/tests/unit-map: STUB_WRAP += $(addprefix -Wl$(comma)--wrap=, \
	pthread_mutex_lock pthread_mutex_unlock)

$(unit_tests): $(B)/tests/unit-%: $(B)/tests/unit/test-%.o
	$(call SAY,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(LDFLAGS) $(STUB_WRAP) \
	  $(sort $^) $(LUA_LIBS) -o $@

$(B)/tests/unit/%.o: tests/unit/%.c $(B)/have-packages
	$(call SAY,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(PROJECT_CFLAGS) $(NBDKIT_CFLAGS) \
	  $(LUA_CFLAGS) $(INCLUDES) -MMD -MP -c $< -o $@

-include $(wildcard $(B)/tests/unit/*.d)

# On a fresh machine this is the first thing, and it may have to install.
run-check:
	$(Q)packaging/need test
	$(Q)$(MAKE) filter $(test_objects) $(unit_tests) $(B)/bench/decisions
	$(Q)tests/run

run-check-unit: $(unit_tests)
	$(Q)TEST_BUILD=$(B)/tests tests/run --only unit

run-check-lua:
	$(Q)tests/run --only busted

# The same tests; the filter is built with a sanitizer, and the stock nbdkit binary
# runs with its library preloaded.  Lua specs have nothing to gain from it.  E2E are
# the files of tests/e2e to run, all if it is empty.
run-check-asan: $(test_objects)
	$(Q)$(MAKE) SANITIZER=address-undefined filter run-check-unit
	$(Q)CHECK_WITH=asan \
	  SCAN_FILTER=build/address-undefined/nbdkit-scan-filter.so \
	  tests/run --only e2e $(E2E)

run-check-tsan: $(test_objects)
	$(Q)$(MAKE) SANITIZER=thread filter run-check-unit
	$(Q)CHECK_WITH=tsan SCAN_FILTER=build/thread/nbdkit-scan-filter.so \
	  tests/run --only e2e $(E2E)

run-check-valgrind: filter $(test_objects)
	$(Q)CHECK_WITH=valgrind tests/run --only e2e $(E2E)

run-check-upstream:
	$(Q)tests/upstream/run

# Builds the guest of bench-boot if it isn't there.
run-check-restore:
	$(Q)packaging/need boot
	$(Q)$(MAKE) filter
	$(Q)tests/restore/restore.py

# HOURS may be a fraction, such as 0.1.
run-soak:
	$(Q)packaging/need test
	$(Q)$(MAKE) filter $(test_objects)
	$(Q)tests/soak/soak.py $(HOURS)

# -- fuzzing -------------------------------------------------------------------

# For each target.
FUZZ_SECONDS ?= 20
FUZZ_CC      ?= clang

FUZZ_SANITIZERS := -fsanitize=fuzzer-no-link,address,undefined \
	-fno-sanitize-recover=all -fno-omit-frame-pointer

fuzz_programs := build/fuzz/fuzz-policy build/fuzz/fuzz-answers \
	build/fuzz/fuzz-clone-map

run-fuzz: build/fuzz/have-fuzzer
	$(Q)$(MAKE) B=build/fuzz CC='$(FUZZ_CC)' \
	  SANITIZER_FLAGS='$(FUZZ_SANITIZERS)' $(fuzz_programs)
	$(Q)tests/fuzz/run '$(FUZZ_SECONDS)' $(fuzz_programs)

# One program a target; they link only what runs policies.
build/fuzz/fuzz-%: tests/fuzz/fuzz-%.c tests/fuzz/fuzz.c tests/fuzz/fuzz.h \
                   $(vm_objects)
	$(call SAY,CC,$<)
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(NBDKIT_CFLAGS) -fsanitize=fuzzer \
	  $(INCLUDES) tests/fuzz/fuzz.c $< $(vm_objects) $(LUA_LIBS) -o $@

fuzz_map_objects := $(map_units:%=$(B)/filter/%.o)

build/fuzz/fuzz-clone-map: tests/fuzz/fuzz-clone-map.c \
                           $(fuzz_map_objects)
	$(call SAY,CC,$<)
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(NBDKIT_CFLAGS) -fsanitize=fuzzer \
	  $(INCLUDES) $< $(fuzz_map_objects) -o $@

build/fuzz/have-fuzzer:
	@mkdir -p $(@D)
	@echo 'int LLVMFuzzerTestOneInput (void) { return 0; }' | \
	  $(FUZZ_CC) -fsanitize=fuzzer,address,undefined -x c - -o $@ 2>/dev/null || { \
	  echo "$(FUZZ_CC) with libFuzzer is missing:" \
	       "apt-get install clang libclang-rt-14-dev" >&2; exit 1; }

# -- install -------------------------------------------------------------------

# Pages that are not of section 1.
section_nbdkit-scan-policy := 3
section_nbdkit-scan-library := 3

# What nbdkit-scan-library(3) is made from: what policies and their tests may use.
reference_lua := $(addprefix lua/runtime/scan/,host.lua sandbox.lua file.lua) \
	$(sort $(wildcard lua/library/scan/*.lua)) \
	$(addprefix lua/kit/scan/,testing.lua contract.lua simulator.lua plot.lua)

man_pages := build/man/nbdkit-scan-library.3 \
	$(foreach page,$(patsubst docs/%.pod,%,$(wildcard docs/*.pod)), \
	build/man/$(page).$(or $(section_$(page)),1))

VERSION := $(shell sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)

define pod2man
	$(call SAY,MAN,$@)
	@command -v pod2man > /dev/null || { \
	  echo 'pod2man is missing: apt-get install perl' >&2; exit 1; }
	@mkdir -p $(@D)
	$(Q)pod2man --section=$(subst .,,$(suffix $@)) --name='$(basename $(@F))' \
	  --center='nbdkit' --release='nbdkit-scan-filter-lua $(VERSION)' \
	  --date="$$(date -u -d "$$(sed -n '/^ -- .*>  /{s///p;q}' debian/changelog)" \
	             +%Y-%m-%d)" --utf8 --errors=die $< $@
endef

build/docs/nbdkit-scan-library.pod: docs/reference $(reference_lua)
	@mkdir -p $(@D)
	$(Q)$(LUA) docs/reference $(reference_lua) > $@.tmp
	$(Q)mv $@.tmp $@

build/man/%.3: build/docs/%.pod debian/changelog
	$(pod2man)
build/man/%.1: docs/%.pod debian/changelog
	$(pod2man)
build/man/%.3: docs/%.pod debian/changelog
	$(pod2man)

# What pages are there to read, and what they show and name, where they say it is.
shown := $(wildcard docs/*.md docs/*.svg docs/policies/*.svg tests/traces/* \
	packaging/systemd/* packaging/prometheus/*)

# Everything under STAGE as it is to be under /.  Packages begin with this.
STAGE = build/stage

# With no answer from nbdkit's package the filters would go to /.
define need_filterdir
	@case '$(FILTERDIR)' in /*) ;; *) \
	  echo 'where nbdkit has its filters is not known:' \
	       'apt-get install nbdkit-plugin-dev, or give FILTERDIR=DIRECTORY' >&2; \
	  exit 1 ;; esac
endef

run-stage: filter $(man_pages)
	$(need_filterdir)
	$(Q)rm -rf '$(STAGE)'
	$(Q)install -d '$(STAGE)$(FILTERDIR)' '$(STAGE)$(BINDIR)' \
	  '$(STAGE)$(LUADIR)/scan' '$(STAGE)$(DATADIR)' '$(STAGE)$(MANDIR)/man1' \
	  '$(STAGE)$(MANDIR)/man3' '$(STAGE)$(DOCDIR)' '$(STAGE)$(COMPLETIONDIR)'
	$(Q)install -m 644 $(filters) '$(STAGE)$(FILTERDIR)/'
	$(Q)install -m 755 lua/bin/scan-policy '$(STAGE)$(BINDIR)/'
	$(Q)for file in $$(find lua/*/scan policies -name '*.lua'); do \
	  install -D -m 644 $$file '$(STAGE)$(DATADIR)'/$$file || exit; done
	$(Q)echo '$(VERSION)' > '$(STAGE)$(DATADIR)/version'
	$(Q)for file in $(wildcard lua/*/scan/*.lua lua/*/scan/*/*.lua); do \
	  link='$(STAGE)$(LUADIR)'/$${file#lua/*/}; mkdir -p "$${link%/*}" && \
	  ln -sr '$(STAGE)$(DATADIR)'/$$file "$$link" || exit; done
	$(Q)install -m 644 $(filter %.1,$(man_pages)) '$(STAGE)$(MANDIR)/man1/'
	$(Q)install -m 644 $(filter %.3,$(man_pages)) '$(STAGE)$(MANDIR)/man3/'
	$(Q)for file in README.md CONTRIBUTING.md LICENSE $(shown); do \
	  install -D -m 644 $$file '$(STAGE)$(DOCDIR)'/$$file || exit; done
	$(Q)ln -sr '$(STAGE)$(DATADIR)/policies' '$(STAGE)$(DOCDIR)/policies'
	$(Q)install -m 644 completion/* '$(STAGE)$(COMPLETIONDIR)/'

# What is there already is kept, and brought back; see packaging/place.  The list of
# what was put there has one place, whatever the PREFIX, so that uninstall finds it.
manifest = $(FILTERDIR)/nbdkit-scan-filter-lua.installed

run-install: run-stage
	$(Q)packaging/place install '$(STAGE)' '$(manifest)' '$(DESTDIR)'

run-uninstall:
	$(need_filterdir)
	$(Q)packaging/place uninstall '$(manifest)' '$(DESTDIR)'

# -- Debian package ------------------------------------------------------------

# In a copy, so that the tree stays as it is; debian/ has the rest.
run-deb:
	@command -v dh >/dev/null || { \
	  echo 'debhelper is missing: apt-get install debhelper' >&2; exit 1; }
	$(Q)rm -rf build/deb
	$(Q)mkdir -p build/deb/source
	$(Q)packaging/files > build/deb/files
	$(Q)tar --null -T build/deb/files -cf - | tar -C build/deb/source -xf -
	$(Q)cd build/deb/source && dpkg-buildpackage -us -uc
	$(Q)rm -rf build/deb/source
	@ls build/deb/*.deb

# -- package for Fedora and its kin ---------------------------------------------

run-rpm:
	$(Q)packaging/rpm/build

# -- what it is worth, and what it costs ---------------------------------------

run-demo:
	$(Q)tests/demo/demo

bench_programs := $(B)/bench/client $(B)/bench/decisions

run-bench:
	$(Q)packaging/need bench
	$(Q)$(MAKE) filter $(bench_programs) $(test_objects)
	$(Q)tests/bench/bench.py $(if $(FULL),--full) $(BENCH)

run-bench-boot:
	$(Q)packaging/need boot
	$(Q)$(MAKE) filter
	$(Q)tests/bench/boot/boot.py $(BOOT)

run-bench-truth:
	$(Q)packaging/need bench
	$(Q)$(MAKE) filter $(bench_programs) build/tests/slow.so
	$(Q)tests/bench/truth.py $(TRUTH)

run-bench-costs: filter $(bench_programs) $(test_objects)
	$(Q)tests/bench/costs.py $(if $(FULL),--full)

$(B)/bench/client: tests/bench/client.c
	$(call SAY,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $< -lnbd -o $@

# Links what runs policies; nbdkit's functions are in the program itself.
$(B)/bench/decisions: tests/bench/decisions.c $(vm_objects)
	$(call SAY,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(INCLUDES) $< $(vm_objects) $(LUA_LIBS) -o $@

# -- lint ----------------------------------------------------------------------

run-lint:
	$(Q)luacheck -q lua lua/bin/scan-policy policies tests filter docs/reference
	$(Q)shellcheck -x -P SCRIPTDIR completion/* tests/*/*.sh \
	  $$(grep -rlIPz '\A#!/bin/(ba)?sh\n' .ci docs packaging tests)
	$(Q)$(MAKE) -B WERROR=1 B=build/lint filter

-include $(wildcard $(B)/filter/*/*.d)

# -- each Debian ---------------------------------------------------------------

run-check-matrix:
	$(Q)tests/matrix
