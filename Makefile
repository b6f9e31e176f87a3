# Two commands do everything on a fresh Debian machine:
#   make run    build a Debian image from its packages and boot it
#   make test   everything CI runs

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

OUT     := out
ROOTFS  ?= debian
VERSION ?= 1
# One date for everything that is built: that of the last commit.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1767225600)
export CGO_ENABLED := 0
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)

# What the build and the tests call. Each is in Debian 12 and 13.
PACKAGES := qemu-system-x86 qemu-utils ovmf swtpm swtpm-tools mmdebstrap debian-archive-keyring \
	erofs-utils e2fsprogs dosfstools mtools gdisk cryptsetup-bin sbsigntool osslsigncode efitools \
	tpm2-tools openssl gpg gpg-agent zstd xz-utils binutils git ca-certificates

# The recovery console's commands: those of u-root that go.mod pins, and ours.
UROOT   := $(shell sed -n 's|^\t\(github.com/u-root/u-root/cmds/.*\)|\1|p' go.mod)
OURS    := $(patsubst %/main.go,./%,$(wildcard uroot-cmds/*/main.go))
SOURCES := $(shell find boot initagent uroot-cmds builder -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum
MACHINE := $(shell find boot initagent uroot-cmds -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ROOTFS=debian|testos  VERSION=n    what `make run` and `make image` build'

.PHONY: tools
tools: $(OUT)/tools.stamp ## install what is missing on this machine

$(OUT)/tools.stamp: Makefile
	@mkdir -p $(OUT)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing: "$$missing; \
		$(SUDO) apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >$(OUT)/apt.log 2>&1 \
			|| { tail -n 20 $(OUT)/apt.log; exit 1; }; \
	fi
	@command -v go >/dev/null || { echo 'Go is missing: install the version that go.mod names from https://go.dev/dl/ (apt-get install golang-go where it is new enough)'; exit 1; }
	@touch $@

.PHONY: build
build: bin/halogen bin/bb ## the halogen command and the machine's commands, in bin/

bin/halogen: $(SOURCES)
	@echo "building halogen"
	@go build -trimpath -buildvcs=false -o $@ ./builder/halogen

# initagent, our commands and u-root's are one program: the kernel unpacks one
# Go runtime, not thirty.
bin/bb: $(MACHINE)
	@echo "building the machine's commands (20 s)"
	@mkdir -p bin
	@go tool makebb -o $@.new ./initagent $(OURS) $(UROOT) >$(OUT)/makebb.log 2>&1 || { cat $(OUT)/makebb.log; exit 1; }
	@printf '%s\n' initagent $(notdir $(OURS) $(UROOT)) >bin/bb.list
	@mv $@.new $@
