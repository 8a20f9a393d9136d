# Builds, shows and tests tunnel-mesh. `make` lists what there is.

MODE ?= auto
BIN ?= target/release/tunnel-mesh
CARGO ?= cargo
# Namespaces and eBPF need root: builds run as you, tests and the demo through sudo where you aren't root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
ifneq ($(SUDO),)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER = sudo -E
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER = sudo -E
endif
SCRIPTS = .ci/run $(wildcard scripts/*.sh examples/*.sh tests/*.sh tests/vm/*.sh) tests/vm/init

.DEFAULT_GOAL := help
.PHONY: help deps deps-% build install demo bench bench-control test test-host test-demo test-vm lint bpffs clean

help: ## this list
	@echo 'make demo   installs what is missing, builds, and shows three hosts with two tenants on this machine'
	@echo 'make test   installs what is missing and runs every test'
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS='	' read -r target text; do \
		printf '  %-13s %s\n' "$$target" "$$text"; done

deps: deps-build deps-demo deps-test deps-lint ## install by apt-get what is missing (test-vm sees to its own)

deps-%:
	@scripts/deps.sh $*

build: deps-build ## target/release/tunnel-mesh
	$(CARGO) build --release --locked

# Where packages put files; DESTDIR comes before all of it.
DESTDIR ?=
PREFIX ?= /usr
SHARE = $(DESTDIR)$(PREFIX)/share

install: ## what `make build` made, with unit, completions, manual pages and schema; DESTDIR=, PREFIX=/usr
	@[ -x $(BIN) ] || { echo "no $(BIN): run make build first" >&2; exit 1; }
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/tunnel-mesh
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system packaging/systemd/*.service
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d packaging/sysusers.d/*.conf
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d packaging/tmpfiles.d/*.conf
	install -d -m 0755 $(DESTDIR)/etc/tunnel-mesh/topology.d $(SHARE)/man/man1 $(SHARE)/tunnel-mesh \
		$(SHARE)/bash-completion/completions $(SHARE)/zsh/vendor-completions $(SHARE)/fish/vendor_completions.d
	$(BIN) completions bash >$(SHARE)/bash-completion/completions/tunnel-mesh
	$(BIN) completions zsh >$(SHARE)/zsh/vendor-completions/_tunnel-mesh
	$(BIN) completions fish >$(SHARE)/fish/vendor_completions.d/tunnel-mesh.fish
	$(BIN) man --dir $(SHARE)/man/man1
	$(BIN) schema >$(SHARE)/tunnel-mesh/tunnel-mesh.schema.json

demo: deps-demo build bpffs ## three hosts, two tenants, real traffic; MODE=clsact without TCX, BIN=... another binary
	$(SUDO) env MODE=$(MODE) BIN=$(BIN) examples/demo.sh

test: ## every test: in a Debian 6.1 kernel under QEMU, then here; with the demo
	@code=0; $(MAKE) --no-print-directory test-vm || code=1; $(MAKE) --no-print-directory test-demo test-host || code=1; \
	[ $$code = 0 ] || { echo 'make test: something above failed' >&2; exit 1; }

test-host: deps-build deps-test bpffs ## the tests that run on this kernel
	$(CARGO) test --locked --no-fail-fast

test-demo: deps-build deps-demo bpffs ## the demo with a debug binary, with TCX and with clsact
	$(CARGO) build --locked
	$(SUDO) env MODE=auto BIN=target/debug/tunnel-mesh examples/demo.sh
	$(SUDO) env MODE=clsact BIN=target/debug/tunnel-mesh examples/demo.sh

test-vm: deps-build deps-vm ## the kernel tests in Debian kernels under QEMU; KERNELS="6.1 6.12"
	tests/vm/run.sh

bench: deps-build deps-bench bpffs ## the data plane beside its peers; writes docs/benchmarks.md and target/bench/datapath.json
	$(CARGO) bench --locked --bench datapath

bench-control: deps-build deps-bench bpffs ## the control plane beside its peers; writes docs/benchmarks.md
	$(CARGO) bench --locked --bench control

lint: deps-build deps-lint ## formatting, clippy, rustdoc, shellcheck
	$(CARGO) fmt --check
	clang-format --dry-run -Werror $(wildcard bpf-src/*.h bpf-src/*.c tests/programs/*.c benches/datapath/programs/*.c)
	shellcheck $(SCRIPTS)
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --quiet

bpffs:
	@mountpoint -q /sys/fs/bpf || $(SUDO) mount -t bpf bpf /sys/fs/bpf

clean: ## remove what was built and downloaded
	$(CARGO) clean
