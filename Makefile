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
# To the shell a name with a space is two names, and rules below remove what they name.
# $(call one,VARIABLE) ends make where it has white space.
one = $(if $(word 2,x$($1)x),$(error $1 is '$($1)': it cannot have white space, give it another name))
$(call one,OUT)
# What --version says; by default it is made of git's tag and commit. For a tree without git.
export HALOGEN_VERSION ?=
# One date for everything that is built: that of the last commit.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1767225600)
export CGO_ENABLED := 0
# The memory of secrets is erased (boot/secretmem) in everything that is built and
# tested.
export GOEXPERIMENT := runtimesecret
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)

# What the build and the tests call. Each is in Debian 12 and 13.
PACKAGES := qemu-system-x86 systemd-boot-efi qemu-utils ovmf swtpm swtpm-tools mmdebstrap debian-archive-keyring \
	erofs-utils e2fsprogs btrfs-progs dosfstools mtools gdisk cryptsetup-bin sbsigntool osslsigncode efitools \
	kmod buildah shellcheck tcc tpm2-tools openssl gpg gpg-agent nginx python3 rsync zstd xz-utils binutils git ca-certificates \
	dbus-daemon systemd openssh-client dropbear-bin wireguard-tools gnutls-bin tdb-tools squashfs-tools 7zip cpio bzip2 lz4 lzip zip \
	softhsm2 gnupg-pkcs11-scd mandoc
# Web servers that the tests start on ports of their own. busybox and busybox-static take
# each other's place, and either does.
PACKAGES += apache2-bin lighttpd caddy $(if $(wildcard /bin/busybox /usr/bin/busybox),,busybox)
# Of what is installed, these would be services too: none is started, now or at the next boot.
SERVICES := nginx lighttpd caddy
# A docker that is there is kept, no matter who made it: Debian's conflicts with docker-ce.
# In Debian 12, docker.io has the client.
DOCKER  := docker.io $(shell grep -qs '^VERSION_CODENAME=bookworm$$' /etc/os-release || echo docker-cli)
PACKAGES += $(if $(shell PATH=$$PATH:/usr/sbin; command -v dockerd >/dev/null && command -v docker),,$(DOCKER))

# The recovery console's commands: those of u-root that go.mod pins, and ours. The
# running system has programs of its own: ota, and halogenctl with what it runs.
ELSEWHERE := halogenctl changes pin phrase module-trust otad boot-report boot-once setup
CONTROL := halogenctl slots verify repair eventlog firmware reseal reset recovery-key pin phrase language module-trust changes boot-report boot-once setup
UROOT   := $(shell sed -n 's|^\t\(github.com/u-root/u-root/cmds/.*\)|\1|p' go.mod)
OURS    := $(patsubst %/main.go,./%,$(filter-out $(ELSEWHERE:%=uroot-cmds/%/main.go),$(wildcard uroot-cmds/*/main.go)))
SOURCES := $(shell find boot initagent uroot-cmds builder -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum
# The same text for the linker, in a file that is written when it changes.
STAMP    = -X halogenos.internal/boot/version.stamp=$$(cat $(OUT)/version)
TOOLS   := bin/halogen bin/bb bin/ota bin/otad bin/halogenctl bin/share
MACHINE := $(shell find boot initagent uroot-cmds -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ROOTFS=debian|desktop|testos  VERSION=n    what `make run` and `make image` build'
	@echo '  DESKTOP=xfce|gnome|kde FIRMWARE=nonfree|free EXTRA=gimp,vlc    which desktop, with what firmware and more packages'
	@echo '  EXTENSION_PACKAGES="vpn=wireguard-tools,iptables ide=geany"    system extensions of packages, for `make run`'
	@echo '  RUN_OPTIONS="--display none"       options of `halogen run` for `make run` and `make resume`'
	@echo '  INSTALL=1                          `make run` installs it from the installer stick first'
	@echo '  ENGINE=buildah|docker|podman NETWORK=host    what `make image` builds with'

.PHONY: tools
tools: $(OUT)/tools.stamp ## install what is missing on this machine

# No service starts (policy-rc.d): they are installed for their programs alone.
$(OUT)/tools.stamp: Makefile
	@mkdir -p $(OUT)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing: "$$missing; \
		$(SUDO) apt-get update -qq; \
		policy=/usr/sbin/policy-rc.d; \
		[ -e $$policy ] || { trap "$(SUDO) rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee $$policy >/dev/null; $(SUDO) chmod 755 $$policy; }; \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends --no-remove $$missing >$(OUT)/apt.log 2>&1 \
			|| { tail -n 20 $(OUT)/apt.log; exit 1; }; \
		for s in $(SERVICES); do case " "$$missing" " in *" $$s "*) \
			[ ! -d /run/systemd/system ] || $(SUDO) systemctl disable --quiet $$s;; esac; done; \
	fi
	@command -v go >/dev/null || { echo 'Go is missing: install the version that go.mod names from https://go.dev/dl/ (apt-get install golang-go where it is new enough)'; exit 1; }
	@touch $@

.PHONY: build
build: $(TOOLS) bin/man ## the halogen command and the machine's commands, in bin/

# A Go that is too old, or not for amd64 or arm64, would leave secrets in memory.
.PHONY: toolchain
toolchain:
	@files=$$(go list -f '{{.GoFiles}}' ./boot/secretmem 2>&1) && [[ $$files = *runtime.go* ]] || { \
		echo "this Go cannot erase secrets from memory (GOEXPERIMENT=$(GOEXPERIMENT)): $$files"; \
		echo 'use the version that go.mod names or a later one, for linux/amd64 or linux/arm64: https://go.dev/dl/'; exit 1; }

# The same of what was built, and that it behaves as go.mod's version of Go: $(call erases,FILE).
erases = [[ $$(go version -m $1) = *GOEXPERIMENT=*runtimesecret* ]] || { echo '$1 was built without GOEXPERIMENT=runtimesecret'; exit 1; }; \
	[[ $$(go version -m $1) != *DefaultGODEBUG=* ]] || { echo '$1 has the defaults of an old Go (see uroot-cmds/build-busybox)'; exit 1; }

# Under a name of its own first: another make may be at it.
$(OUT)/version: FORCE
	@mkdir -p $(@D) && boot/version/describe >$@.$$$$ && if cmp -s $@.$$$$ $@; then rm $@.$$$$; else mv $@.$$$$ $@; fi
.PHONY: FORCE
FORCE:

bin/halogen: $(SOURCES) $(OUT)/version | toolchain
	@echo "building halogen"
	@go build -trimpath -buildvcs=false -ldflags="-s -w $(STAMP)" -o $@ ./builder/halogen
	@$(call erases,$@)

# initagent, our commands and u-root's are one program: the kernel unpacks one
# Go runtime, not thirty.
bin/bb: $(MACHINE) uroot-cmds/build-busybox $(OUT)/version | toolchain
	@echo "building the machine's commands (20 s)"
	@mkdir -p bin $(OUT)
	@STAMP="$(STAMP)" uroot-cmds/build-busybox $@.new ./initagent $(OURS) $(UROOT) >$(OUT)/makebb.log 2>&1 || { cat $(OUT)/makebb.log; exit 1; }
	@printf '%s\n' initagent $(notdir $(OURS) $(UROOT)) >bin/bb.list
	@go list -deps -f '{{with .Module}}{{.Path}} {{.Version}}{{end}}' ./initagent $(OURS) $(UROOT) | sort -u | sed '/^$$/d' >bin/bb.modules
	@$(call erases,$@.new)
	@mv $@.new $@

# What the running system has of them.
bin/ota bin/otad: bin/%: $(MACHINE) $(OUT)/version | toolchain
	@mkdir -p bin
	@go build -trimpath -buildvcs=false -ldflags="-s -w $(STAMP)" -o $@ ./uroot-cmds/$*
	@$(call erases,$@)

bin/halogenctl: $(MACHINE) uroot-cmds/build-busybox $(OUT)/version | toolchain
	@mkdir -p bin $(OUT)
	@STAMP="$(STAMP)" uroot-cmds/build-busybox $@.new $(CONTROL:%=./uroot-cmds/%) >$(OUT)/makebb.log 2>&1 || { cat $(OUT)/makebb.log; exit 1; }
	@$(call erases,$@.new)
	@mv $@.new $@

# What goes below /usr/share of the image.
PAGES   := $(foreach c,ota otad $(CONTROL),uroot-cmds/$(c)/$(c).8)
FORMATS := uroot-cmds/ota/settings/ota.conf.5 boot/stateconf/state.conf.5 boot/answers/setup.json.5
bin/share: $(PAGES) $(FORMATS) uroot-cmds/completions.bash
	@rm -rf $@ && mkdir -p $@/man/man5 $@/man/man8 $@/bash-completion/completions
	@cp $(PAGES) $@/man/man8/
	@cp $(FORMATS) $@/man/man5/
	@for c in ota halogenctl; do cp uroot-cmds/completions.bash $@/bash-completion/completions/$$c; done

# The manual pages for those who make distributions.
bin/man: bin/halogen builder/config/uki.conf.5 boot/manifest/manifest.env.5 boot/release/release.json.5 $(PAGES) $(FORMATS)
	@rm -rf $@ && mkdir -p $@/man5 $@/man8
	@bin/halogen man $@/man1
	@cp $(filter %.5,$^) $@/man5/
	@cp $(filter %/ota.8 %/otad.8 %/halogenctl.8,$^) $@/man8/

# The licences of all that is in the programs.
$(OUT)/copyright: LICENSE go.mod builder/deb/copyright $(SOURCES)
	@mkdir -p $(@D) && builder/deb/copyright ./builder/halogen ./initagent ./uroot-cmds/ota ./uroot-cmds/otad ./uroot-cmds/halogenctl $(OURS) $(UROOT) >$@

# halogen looks for the machine's programs beside itself, so all are in one directory, and
# $(PREFIX)/bin has a link.
PREFIX ?= /usr/local
DESTDIR ?=
INTO = $(DESTDIR)$(PREFIX)
DOC  = $(INTO)/share/doc/halogen
.PHONY: install places
install: places build $(OUT)/copyright ## install halogen and its manual pages (PREFIX=/usr/local DESTDIR=)
	@install -d $(INTO)/bin $(INTO)/lib/halogen $(INTO)/share/man/man1 $(INTO)/share/man/man5 $(INTO)/share/man/man8 $(DOC)/examples
	@install -m 755 bin/halogen bin/bb bin/ota bin/otad bin/halogenctl $(INTO)/lib/halogen/
	@install -m 644 bin/bb.list bin/bb.modules $(INTO)/lib/halogen/
	@rm -rf $(INTO)/lib/halogen/share $(DOC)/examples/recipes
	@cp -R bin/share $(INTO)/lib/halogen/share
	@ln -sfn ../lib/halogen/halogen $(INTO)/bin/halogen
	@for s in 1 5 8; do install -m 644 bin/man/man$$s/* $(INTO)/share/man/man$$s/; done
	@install -m 644 README.md CHANGELOG.md $(OUT)/copyright $(DOC)/
	@install -m 644 uki.conf $(DOC)/examples/
	@cp -R builder/recipes $(DOC)/examples/recipes && rm -f $(DOC)/examples/recipes/*.go
	@chmod -R u=rwX,go=rX $(INTO)/lib/halogen/share $(DOC)/examples/recipes

places:
	@:$(call one,PREFIX)$(call one,DESTDIR)

# A Debian package of the same. MAINTAINER= is who answers for it; without, DEBFULLNAME and
# DEBEMAIL say so, as to Debian's own tools.
MAINTAINER ?=
DEBARCH = $(shell go env GOARCH)
.PHONY: deb
deb: build $(OUT)/copyright ## a Debian package of halogen, in out/ (MAINTAINER='NAME <ADDRESS>')
	@rm -rf $(OUT)/deb $(OUT)/halogen_*.deb
	@$(MAKE) --no-print-directory install DESTDIR=$(OUT)/deb PREFIX=/usr
	@mv $(OUT)/deb/usr/share/doc/halogen/CHANGELOG.md $(OUT)/deb/usr/share/doc/halogen/changelog
	@gzip -9n $(OUT)/deb/usr/share/man/man*/* $(OUT)/deb/usr/share/doc/halogen/changelog
	@go run ./builder/deb -root $(OUT)/deb -version "$$(cat $(OUT)/version)" -arch $(DEBARCH) -date $(SOURCE_DATE_EPOCH) -maintainer '$(MAINTAINER)' \
		-out "$(OUT)/halogen_$$(tr - '~' <$(OUT)/version)_$(DEBARCH).deb"
	@ls $(OUT)/halogen_*.deb

# --- Images -------------------------------------------------------------------

RECIPE := $(shell find builder/recipes/debian builder/recipes/desktop builder/recipes/entries builder/recipes/finish-system -type f -not -name make-extension)
# Only root can keep owners other than root.
AS_ROOT = $(if $(SUDO),$(SUDO) env SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH))
# These images have most files in common: what was found in them is kept by their content.
BUILD_CACHE := --cache $(OUT)/build-cache
HALOGEN_BUILD = $(AS_ROOT) bin/halogen build $(BUILD_CACHE) --version $(VERSION) --disk
MINE = $(if $(SUDO),@$(SUDO) chown -R $(shell id -u):$(shell id -g) $(@D))

$(OUT)/rootfs/debian.tar: $(RECIPE) | $(OUT)/tools.stamp
	@mkdir -p $(@D)
	@echo "making a Debian root file system from its packages (a minute)"
	@DEV=1 EXTRA=$(if $(findstring Updater,$(RUN)),fwupd-unsigned) builder/recipes/debian/make-rootfs $@

# A desktop. Another one has another stamp, which names what was made last.
DESKTOP  ?= xfce
FIRMWARE ?= nonfree
EXTRA    ?=
DESKTOP_STAMP := $(OUT)/rootfs/desktop-$(DESKTOP)-$(FIRMWARE)$(if $(EXTRA),-$(EXTRA))
$(DESKTOP_STAMP): $(RECIPE)
	@mkdir -p $(@D) && rm -f $(OUT)/rootfs/desktop-*-* && touch $@
$(OUT)/rootfs/desktop.tar: $(DESKTOP_STAMP) | $(OUT)/tools.stamp
	@echo "making a Debian root file system with $(DESKTOP) from its packages (minutes)"
	@DEV=1 DESKTOP=$(DESKTOP) FIRMWARE=$(FIRMWARE) EXTRA=$(EXTRA) builder/recipes/debian/make-rootfs $@

# Extensions of packages, as words NAME=PACKAGE,PACKAGE: each is what the packages add to the
# root file system. The list is written when it changes, so that the image is made again.
EXTENSION_PACKAGES ?=
EXTENSION_TARS = $(foreach e,$(EXTENSION_PACKAGES),$(OUT)/extensions/$1/$(subst =,/,$e).tar)
EXTENSIONS = $(foreach e,$(EXTENSION_PACKAGES),--extension $(firstword $(subst =, ,$e))=$(OUT)/extensions/$1/$(subst =,/,$e).tar)
$(OUT)/extensions/%/list: FORCE
	@mkdir -p $(@D); echo '$(EXTENSION_PACKAGES)' | cmp -s - $@ || echo '$(EXTENSION_PACKAGES)' >$@
$(OUT)/extensions/debian/%.tar: $(OUT)/rootfs/debian.tar
	@mkdir -p $(@D)
	@echo "making what $(notdir $*) add to it (a minute)"
	@DEV=1 builder/recipes/debian/make-extension $< $@ $(notdir $*)
$(OUT)/extensions/desktop/%.tar: $(OUT)/rootfs/desktop.tar
	@mkdir -p $(@D)
	@echo "making what $(notdir $*) add to it (minutes)"
	@DEV=1 DESKTOP=$(DESKTOP) FIRMWARE=$(FIRMWARE) EXTRA=$(EXTRA) builder/recipes/debian/make-extension $< $@ $(notdir $*)

# What a machine is updated from: the same without the latest updates.
$(OUT)/rootfs/debian-before.tar: $(RECIPE) | $(OUT)/tools.stamp
	@mkdir -p $(@D)
	@echo "making a Debian root file system without the latest updates (a minute)"
	@DEV=1 POINT_RELEASE=1 builder/recipes/debian/make-rootfs $@

# Debian changed by a directory: a daemon with a user of its own and changes in /etc, and
# a system that does not pass its health check.
$(OUT)/rootfs/debian-%.tar: $(OUT)/rootfs/debian.tar $(shell find qemu-tests/update)
	@$(AS_ROOT) qemu-tests/update/change-rootfs qemu-tests/update/$* $(abspath $<) $(abspath $@)

# The same with what makes a btrfs, and changed in the same way.
$(OUT)/rootfs/debian-btrfs.tar: $(RECIPE) | $(OUT)/tools.stamp
	@mkdir -p $(@D)
	@echo "making a Debian root file system with btrfs (a minute)"
	@DEV=1 EXTRA=btrfs-progs builder/recipes/debian/make-rootfs $@
$(OUT)/rootfs/debian-btrfs-small.tar: $(OUT)/rootfs/debian-btrfs.tar $(shell find qemu-tests/update)
	@$(AS_ROOT) qemu-tests/update/change-rootfs qemu-tests/update/small $(abspath $<) $(abspath $@)

# Systems without systemd: each of another layout and another init.
INITS := sysvinit openrc busybox
$(INITS:%=$(OUT)/rootfs/%.tar): $(shell find qemu-tests/inits builder/osfiles/files/examples -type f) | $(OUT)/tools.stamp
	@mkdir -p $(@D)
	@echo "making a Debian with $(basename $(@F)) for its init (a minute)"
	@qemu-tests/inits/make-rootfs $(basename $(@F)) $@

# The same tree unpacked: the test system takes its kernel from it.
$(OUT)/rootfs/debian.stamp: $(OUT)/rootfs/debian.tar
	@rm -rf $(OUT)/rootfs/debian && mkdir -p $(OUT)/rootfs/debian
	@tar -C $(OUT)/rootfs/debian --xattrs --xattrs-include='*' --exclude='./dev/*' -xf $<
	@touch $@

$(OUT)/rootfs/testos.stamp: $(OUT)/rootfs/debian.stamp uki.conf $(shell find qemu-tests/testos -name '*.go') go.mod
	@mkdir -p $(OUT)/rootfs
	@go build -trimpath -buildvcs=false -o $(OUT)/rootfs/testos-init ./qemu-tests/testos/init
	@rm -rf $(OUT)/rootfs/testos
	@go run ./qemu-tests/testos/mkrootfs -debian $(OUT)/rootfs/debian -init $(OUT)/rootfs/testos-init -config uki.conf -out $(OUT)/rootfs/testos
	@touch $@

$(OUT)/images/debian-$(VERSION)/disk.img: $(OUT)/rootfs/debian.tar $(OUT)/extensions/debian/list $(call EXTENSION_TARS,debian) uki.conf $(TOOLS)
	@$(HALOGEN_BUILD) --installer --rootfs $< $(call EXTENSIONS,debian) --out $(@D) >/dev/null
	$(MINE)

$(OUT)/images/testos-$(VERSION)/disk.img: $(OUT)/rootfs/testos.stamp uki.conf $(TOOLS)
	@$(HALOGEN_BUILD) --installer --rootfs $(OUT)/rootfs/testos --out $(@D) >/dev/null
	$(MINE)

$(OUT)/desktop/uki.conf: uki.conf builder/recipes/desktop/config
	@mkdir -p $(@D)
	@builder/recipes/desktop/config uki.conf >$@

# Its disk has room for two slots of 8 GiB.
$(OUT)/images/desktop-$(VERSION)/disk.img: $(OUT)/rootfs/desktop.tar $(OUT)/extensions/desktop/list $(call EXTENSION_TARS,desktop) $(OUT)/desktop/uki.conf $(TOOLS)
	@$(HALOGEN_BUILD) --disk-size 32G --installer --config $(OUT)/desktop/uki.conf --rootfs $< $(call EXTENSIONS,desktop) --out $(@D) >/dev/null
	$(MINE)

# The test system for machines without TPM or Secure Boot.
$(OUT)/images/testos-optional-$(VERSION)/disk.img: $(OUT)/rootfs/testos.stamp uki.conf $(TOOLS)
	@sed 's/^SecureBoot=.*/SecureBoot=optional/; s/^TPM=.*/TPM=optional/' uki.conf >$(OUT)/optional.conf
	@$(HALOGEN_BUILD) --config $(OUT)/optional.conf --rootfs $(OUT)/rootfs/testos --out $(@D) >/dev/null
	$(MINE)

# The releases that the update tests publish, with a key of their own pinned.
KEY := $(OUT)/images/update-key
$(KEY)/uki.conf: qemu-tests/update/make-release-key uki.conf | $(OUT)/tools.stamp
	@qemu-tests/update/make-release-key $(@D)

$(OUT)/images/update-1/disk.img: $(OUT)/rootfs/debian-before.tar
$(OUT)/images/update-2/disk.img: $(OUT)/rootfs/debian.tar
$(OUT)/images/update-bad-2/disk.img: $(OUT)/rootfs/debian-bad.tar
$(OUT)/images/update-3/disk.img: $(OUT)/rootfs/debian-small.tar
$(OUT)/images/openrc-1/disk.img $(OUT)/images/openrc-4/disk.img: $(OUT)/rootfs/openrc.tar
$(OUT)/images/sysvinit-2/disk.img: $(OUT)/rootfs/sysvinit.tar
$(OUT)/images/busybox-3/disk.img: $(OUT)/rootfs/busybox.tar
UPDATES := $(patsubst %,$(OUT)/images/%/disk.img,update-1 update-2 update-3 update-bad-2)
LAYOUTS := $(patsubst %,$(OUT)/images/%/disk.img,openrc-1 openrc-4 sysvinit-2 busybox-3)
$(UPDATES) $(LAYOUTS): $(KEY)/uki.conf $(TOOLS)
	@$(AS_ROOT) bin/halogen build $(BUILD_CACHE) --config $(KEY)/uki.conf --version $(lastword $(subst -, ,$(notdir $(@D)))) --disk --rootfs $(filter %.tar,$^) --out $(@D) >/dev/null
	$(MINE)

# A machine that runs an earlier release updates to this one. This commit is the last whose
# systems share one upper directory of /etc; it is built by its own Makefile, of the same
# Debian, with the same release key.
EARLIER ?= 0938bb06fadf4cbbbdcfbde4917f3ece82b1ff6a
$(OUT)/images/earlier-1/disk.img: $(OUT)/rootfs/debian-before.tar $(KEY)/uki.conf
	@echo "building the release of $(EARLIER) (minutes)"
	@$(AS_ROOT) rm -rf $(OUT)/earlier && mkdir -p $(OUT)/earlier/out/rootfs $(OUT)/earlier/$(KEY)
	@git archive $(EARLIER) | tar -x -C $(OUT)/earlier
	@ln $(OUT)/rootfs/debian-before.tar $(OUT)/earlier/out/rootfs/ && cp $(KEY)/secret.asc $(KEY)/password $(KEY)/public.asc $(OUT)/earlier/$(KEY)/
	@pinned=$$(grep ^ReleaseKey= $(KEY)/uki.conf) && sed "s/^ReleaseKey=.*/$$pinned/; s/^#ReleaseKeyFile=.*/ReleaseKeyFile=public.asc/" $(OUT)/earlier/uki.conf >$(OUT)/earlier/$(KEY)/uki.conf
	@touch $(OUT)/earlier/out/rootfs/debian-before.tar $(OUT)/earlier/$(KEY)/uki.conf
	@$(MAKE) --no-print-directory -C $(OUT)/earlier OUT=out out/images/update-1/disk.img
	@mkdir -p $(@D) && $(AS_ROOT) cp -a --sparse=always $(OUT)/earlier/out/images/update-1/. $(@D) && $(AS_ROOT) rm -rf $(OUT)/earlier
	@touch $@

# A desktop with the release key of the update tests, and its next release, which has one more
# package.
DESKTOPS := $(OUT)/images/desktop-update-1/disk.img $(OUT)/images/desktop-update-2/disk.img
$(OUT)/rootfs/desktop-more.tar: $(OUT)/rootfs/desktop.tar $(shell find qemu-tests/update/package -type f) qemu-tests/update/add-package
	@$(AS_ROOT) qemu-tests/update/add-package qemu-tests/update/package $(abspath $<) $(abspath $@)
$(KEY)/desktop.conf: $(KEY)/uki.conf builder/recipes/desktop/config
	@builder/recipes/desktop/config $< >$@
$(OUT)/images/desktop-update-1/disk.img: $(OUT)/rootfs/desktop.tar
$(OUT)/images/desktop-update-2/disk.img: $(OUT)/rootfs/desktop-more.tar
$(DESKTOPS): $(KEY)/desktop.conf $(TOOLS)
	@$(AS_ROOT) bin/halogen build $(BUILD_CACHE) --config $(KEY)/desktop.conf --version $(lastword $(subst -, ,$(notdir $(@D)))) --disk --disk-size 32G --rootfs $(filter %.tar,$^) --out $(@D) >/dev/null
	$(MINE)

# A system with an extension, and its next release: a module that Debian has signed is in the
# extension and not in the image.
EXTENDED := $(OUT)/images/extended-1/disk.img $(OUT)/images/extended-2/disk.img
$(OUT)/rootfs/without-wireguard.tar $(OUT)/rootfs/wireguard.tar &: $(OUT)/rootfs/debian.tar qemu-tests/update/take-module
	@$(AS_ROOT) qemu-tests/update/take-module wireguard $(abspath $< $(@D)/without-wireguard.tar $(@D)/wireguard.tar)
$(OUT)/rootfs/vpn-1.tar $(OUT)/rootfs/vpn-2.tar: $(OUT)/rootfs/vpn-%.tar: $(OUT)/rootfs/wireguard.tar $(OUT)/extensions/debian/vpn/wireguard-tools,dnsmasq-base.tar qemu-tests/update/make-vpn $(shell find qemu-tests/update/vpn -type f)
	@$(AS_ROOT) qemu-tests/update/make-vpn $* $(abspath $(filter %.tar,$^) $@)
$(EXTENDED): $(OUT)/images/extended-%/disk.img: $(OUT)/rootfs/without-wireguard.tar $(OUT)/rootfs/vpn-%.tar $(KEY)/uki.conf $(TOOLS)
	@$(AS_ROOT) bin/halogen build $(BUILD_CACHE) --config $(KEY)/uki.conf --version $* --disk --rootfs $< --extension vpn=$(OUT)/rootfs/vpn-$*.tar --out $(@D) >/dev/null
	$(MINE)

# The same with another file system on the root partition.
BTRFS := $(OUT)/images/btrfs-1/disk.img $(OUT)/images/btrfs-2/disk.img
$(KEY)/btrfs.conf: $(KEY)/uki.conf
	@sed 's/^RootPartitionFormat=.*/RootPartitionFormat=btrfs/; s/^\(\tdm_crypt .*\) ext4$$/\1 btrfs/' $< >$@
$(OUT)/images/btrfs-1/disk.img: $(OUT)/rootfs/debian-btrfs.tar
$(OUT)/images/btrfs-2/disk.img: $(OUT)/rootfs/debian-btrfs-small.tar
$(BTRFS): $(KEY)/btrfs.conf $(TOOLS)
	@$(AS_ROOT) bin/halogen build $(BUILD_CACHE) --config $(KEY)/btrfs.conf --version $(lastword $(subst -, ,$(notdir $(@D)))) --disk --rootfs $(filter %.tar,$^) --out $(@D) >/dev/null
	$(MINE)

# Machines with slots of 256 MiB, and their next release, which does not fit these: it has 96
# MiB that do not compress. The one after that differs in its version alone.
GROW := $(patsubst %,$(OUT)/images/%/disk.img,grow-1 grow-2 grow-3 grow-btrfs-1 grow-btrfs-2)
$(OUT)/rootfs/debian-large.tar: $(OUT)/rootfs/debian.tar qemu-tests/update/add-random
	@$(AS_ROOT) qemu-tests/update/add-random 96 $(abspath $<) $(abspath $@)
$(OUT)/rootfs/debian-btrfs-large.tar: $(OUT)/rootfs/debian-btrfs.tar qemu-tests/update/add-random
	@$(AS_ROOT) qemu-tests/update/add-random 96 $(abspath $<) $(abspath $@)
$(KEY)/grow-1.conf: $(KEY)/uki.conf
	@sed 's/^SlotSize=.*/SlotSize=256M/' $< >$@
$(KEY)/grow-2.conf $(KEY)/grow-3.conf: $(KEY)/uki.conf
	@sed 's/^SlotSize=.*/SlotSize=384M/' $< >$@
$(KEY)/grow-btrfs-%.conf: $(KEY)/grow-%.conf
	@sed 's/^RootPartitionFormat=.*/RootPartitionFormat=btrfs/; s/^\(\tdm_crypt .*\) ext4$$/\1 btrfs/' $< >$@
$(OUT)/images/grow-1/disk.img: $(OUT)/rootfs/debian.tar
$(OUT)/images/grow-2/disk.img $(OUT)/images/grow-3/disk.img: $(OUT)/rootfs/debian-large.tar
$(OUT)/images/grow-btrfs-1/disk.img: $(OUT)/rootfs/debian-btrfs.tar
$(OUT)/images/grow-btrfs-2/disk.img: $(OUT)/rootfs/debian-btrfs-large.tar
$(GROW): $(OUT)/images/%/disk.img: $(KEY)/%.conf $(TOOLS)
	@$(AS_ROOT) bin/halogen build $(BUILD_CACHE) --config $< --version $(lastword $(subst -, ,$*)) --disk --disk-size 4G --rootfs $(filter %.tar,$^) --out $(@D) >/dev/null
	$(MINE)

# What the build container is made of: any image with Debian 13, or an archive of
# one, here of its packages.
BASE ?= $(OUT)/base.tar
$(OUT)/base.tar: | $(OUT)/tools.stamp
	@mkdir -p $(@D)
	@echo "making the container's base (20 s)"
	@mmdebstrap --quiet --variant=apt trixie $@ "$$(builder/recipes/debian/mirror)"

ENGINE  ?= buildah
# host, where the engine's own network does not reach the packages.
NETWORK ?=
# Isolation beyond a chroot wants a runtime (crun, runc) beside buildah.
ISOLATION := BUILDAH_ISOLATION=$(or $(BUILDAH_ISOLATION),chroot) $(if $(DOCKER_HOST),DOCKER_HOST=$(DOCKER_HOST))
MIRROR ?= $(shell builder/recipes/debian/mirror)
DEVELOPMENT := /dev/shm/halogen-development-$(shell id -u)
ifndef RELEASE_KEY
RELEASE_KEY      := $(DEVELOPMENT)/keys/release-key.secret.asc
RELEASE_PASSWORD := $(DEVELOPMENT)/password
CONFIG           := $(DEVELOPMENT)/config/uki.conf
endif
CONFIG ?= $(if $(filter desktop,$(ROOTFS)),$(OUT)/desktop/)uki.conf

.PHONY: image
image: image-$(ROOTFS) ## build a signed release of ROOTFS (Debian: in a container; RELEASE_KEY=, RELEASE_PASSWORD=, CONFIG=)

.PHONY: image-testos
image-testos: $(OUT)/images/testos-$(VERSION)/disk.img

.PHONY: image-debian image-desktop
image-debian image-desktop: $(filter $(OUT)/base.tar,$(BASE)) $(TOOLS) $(if $(filter desktop,$(ROOTFS)),$(OUT)/desktop/uki.conf)
	@case $(RELEASE_KEY) in $(DEVELOPMENT)/*) $(AS_ROOT) builder/container/development-keys bin/halogen $(if $(filter desktop,$(ROOTFS)),$(OUT)/desktop/)uki.conf $(DEVELOPMENT) ;; esac
	@$(AS_ROOT) rm -rf $(OUT)/release/$(VERSION)
	@$(AS_ROOT) $(ISOLATION) bin/halogen build --container --engine $(ENGINE) $(if $(NETWORK),--network $(NETWORK)) --base $(BASE) --mirror $(MIRROR) --config $(CONFIG) \
		$(if $(filter desktop,$(ROOTFS)),--set DESKTOP=$(DESKTOP) --set FIRMWARE=$(FIRMWARE) $(if $(EXTRA),--set EXTRA=$(EXTRA)) --disk-size 32G) \
		--version $(VERSION) --disk --out $(OUT)/release/$(VERSION) --release-key $(RELEASE_KEY) --release-key-password-file $(RELEASE_PASSWORD)
	$(if $(SUDO),@$(SUDO) chown -R $(shell id -u):$(shell id -g) $(OUT)/release/$(VERSION))

# How a machine is run: a desktop has a screen, and needs more of everything.
RUN_OPTIONS ?= $(if $(filter desktop,$(ROOTFS)),--display window --memory 4096 --cpus 2)

.PHONY: run
run: $(OUT)/images/$(ROOTFS)-$(VERSION)/disk.img ## build the image and boot it in a fresh machine; Ctrl-] ends it
ifdef INSTALL
	@echo 'the installer stick starts: choose vda; the machine restarts without the stick'
endif
	@[ $(ROOTFS) != debian ] || echo 'the first boot makes keys and restarts; then log in as root with the password "halogen"'
	@[ $(ROOTFS) != desktop ] || printf '%s\n' 'the first boot makes keys and restarts; the second shows the recovery key, to be written down;' \
		'then it asks on the screen for an account, and ends at its login'
	@bin/halogen run $(RUN_OPTIONS) --fresh --state $(OUT)/run/$(ROOTFS) $(if $(INSTALL),--installer $(<D)/installer.img,--image $<)
	@echo '`make resume ROOTFS=$(ROOTFS)` boots this machine again; builder/README.md says how to make a system of your own'

.PHONY: resume
resume: bin/halogen ## boot the machine of the last `make run` again
	@bin/halogen run $(RUN_OPTIONS) --state $(OUT)/run/$(ROOTFS)

# --- Tests --------------------------------------------------------------------

# The judges that are not in Debian 12 come from a Debian 13 of their own, and with them microcode to judge.
$(OUT)/tools13.stamp: Makefile | $(OUT)/tools.stamp
	@echo "making a Debian 13 for its ukify and systemd-measure (20 s)"
	@rm -rf $(OUT)/tools13
	@builder/recipes/debian/mirror >$(OUT)/mirror
	@mmdebstrap --quiet --variant=apt --components=main,non-free-firmware --include=systemd-ukify,systemd,systemd-boot-efi,erofs-utils,iucode-tool,intel-microcode,amd64-microcode trixie $(OUT)/tools13 "$$(cat $(OUT)/mirror)"
	@touch $@

# What is made by one program at a time is made beside the linters. The simulated machine's
# tests are one program on one core: behind it the images are made, and beside both all is
# run that no boot test waits for. The containers are made beside the machines of the boot
# tests, and give way to them: systemd waits 90 s for a serial line, and no longer.
.PHONY: test
test: tools ## everything CI runs: goes on after a failure, and ends with what each part took
	@rm -f $(addprefix $(OUT)/,parts unit.log agent.log beside.log boot.log container.log); failed=; \
	part() { began=$$(date +%s); how=passed; $${low:+nice -n 15} $(MAKE) --no-print-directory "$$@" || { how=FAILED; failed=1; }; printf '%6d s  %s  make %s\n' $$(($$(date +%s) - began)) $$how "$$*" >>$(OUT)/parts; }; \
	part -k --output-sync=target -j2 lint inputs build; \
	{ part unit-agent; part test-images; [ -z "$$failed" ]; } >$(OUT)/beside.log 2>&1 & beside=$$!; \
	part unit-packages; part deb-test; part fuzz; wait $$beside || failed=1; cat $(OUT)/beside.log; \
	{ low=y; part container-test; [ -z "$$failed" ]; } >$(OUT)/container.log 2>&1 & container=$$!; \
	part boot-test; wait $$container || failed=1; \
	cat $(OUT)/container.log $(OUT)/parts; [ -z "$$failed" ] || { grep -h -E '^ *--- FAIL' $(addprefix $(OUT)/,unit.log agent.log container.log boot.log); exit 1; }

.PHONY: inputs
inputs: $(addprefix $(OUT)/,tools13.stamp rootfs/debian.stamp rootfs/debian-before.tar base.tar)

.PHONY: lint
lint: | $(OUT)/tools.stamp toolchain ## gofmt, go vet, staticcheck, revive
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	@go vet ./...
	@go tool staticcheck ./...
	@go tool -modfile=.ci/lint.mod revive -config revive.toml ./...
	@shellcheck $$(git grep -lE '^#!/bin/(ba)?sh' -- ':!*.go')

# What a change is tried with while it is made. Go keeps the results of what has not changed.
.PHONY: check
check: lint ## the linters, and the unit tests that need no root, network or image
	@go test $$(go list ./... | grep -vE '/(qemu-tests|builder/container|builder/deb)$$')

.PHONY: unit unit-agent unit-packages
unit: $(OUT)/tools13.stamp $(OUT)/rootfs/debian.stamp ## the unit tests
	@$(MAKE) --no-print-directory -k -j2 unit-agent unit-packages

# lint has all of go vet, so go test need not run a part of it again.
# The tests of whole boots in the simulated machine are one program on one core.
unit-agent: | toolchain
	@mkdir -p $(OUT)
	@go test -vet=off -timeout 40m -v ./initagent/agent >$(OUT)/agent.log || { grep -vE '^ *(=== |--- PASS)' $(OUT)/agent.log; exit 1; }
	@echo "power cuts over trials, rollbacks, blesses and floor raises:"
	@grep -E 'explore_test.go|^ok' $(OUT)/agent.log

unit-packages: $(OUT)/tools13.stamp $(OUT)/rootfs/debian.stamp | toolchain
	@HALOGEN_TOOLS13=$(abspath $(OUT)/tools13) HALOGEN_DEBIAN=$(abspath $(OUT)/rootfs/debian) go test -vet=off -timeout 40m $$(go list ./... | grep -vE '/(qemu-tests|builder/container|builder/deb|initagent/agent)$$') | tee $(OUT)/unit.log

# What the search for secrets must be quiet about, and 16 GB of chance.
SCANNED := xfce4,gnupg,openssh-server,python3,python3-pip,postgresql,nginx,samba,firefox-esr
$(OUT)/scanned.stamp: | $(OUT)/tools.stamp
	@echo "making a Debian with a desktop and servers (minutes)"
	@rm -rf $(OUT)/scanned
	@mmdebstrap --quiet --variant=apt --aptopt='APT::Install-Recommends "false"' --include=$(SCANNED),ssl-cert trixie $(OUT)/scanned "$$(builder/recipes/debian/mirror)"
	@touch $@

.PHONY: scan-debian
scan-debian: $(OUT)/scanned.stamp ## search a whole desktop for secrets: only real keys are found
	@HALOGEN_DESKTOP=$(abspath $(OUT)/scanned) go test -count=1 -v -run TestDesktop ./builder/scan

.PHONY: scan-random
scan-random: ## search 16 GB of random bytes for secrets: none are found
	@HALOGEN_RANDOM_GB=16 go test -count=1 -v -timeout 60m -run TestRandomBytes ./builder/scan

.PHONY: deb-test
deb-test: deb $(OUT)/tools13.stamp ## the Debian package, installed beside those of a Debian 13
	@HALOGEN_DEB=$$(echo $(abspath $(OUT))/halogen_*.deb) HALOGEN_TOOLS13=$(abspath $(OUT)/tools13) go test -count=1 ./builder/deb

# It takes the place of a machine (qemu-tests/slots.go), where boot tests run beside it.
SLOTS := $(or $(TMPDIR),/tmp)/halogen-machines-$(shell id -u)
.PHONY: container-test
container-test: $(OUT)/base.tar $(TOOLS) ## a release in two containers: the same bytes, and no key left behind
	@mkdir -m 700 -p $(SLOTS)
	@HALOGEN_BASE=$(abspath $(OUT)/base.tar) flock --close $(SLOTS)/0 go test -count=1 -timeout 30m ./builder/container

# A number of inputs and not a time: at the end of its time go test sometimes
# reports the interrupted input as a failure. A package's targets are linked once: that
# takes longer than most of them do. Each core has a package of its own, as linking and
# the start of a target need one.
FUZZTIME ?= 5000x
.PHONY: fuzz
fuzz: | toolchain ## each fuzz target for FUZZTIME
	@$(MAKE) --no-print-directory -k --output-sync=target -j$$(nproc) $$(git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|fuzz-in/|')

fuzz-in/%: FORCE
	@mkdir -p $(OUT)/fuzz; cache=$$(go env GOCACHE)/fuzz; module=$$(go list -m); program=$(abspath $(OUT))/fuzz/$(subst /,-,$*).test; log=$$program.log; \
	go test -c -fuzz . -o $$program ./$*; \
	for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]*' $*/*_test.go | cut -c6-); do \
		echo "fuzz $* $$target"; \
		(cd $* && $$program -test.run '^$$' -test.fuzz "^$$target\$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 10x -test.parallel 1 \
			-test.fuzzcachedir $$cache/$$module/$* -test.timeout 10m -test.paniconexit0) >$$log 2>&1 && grep -q '^fuzz: elapsed' $$log || { cat $$log; exit 1; }; \
	done; rm $$program $$log

.PHONY: test-images
test-images: $(patsubst %,$(OUT)/images/%/disk.img,debian-1 testos-1 update-1 update-2)

# Those that no test of `make test` has.
.PHONY: more-test-images
more-test-images: $(OUT)/images/testos-optional-1/disk.img $(UPDATES)

# What the search of a machine's memory must find out: the machine's commands,
# built so that nothing is erased.
$(OUT)/forgetful/bb: $(MACHINE) uroot-cmds/build-busybox $(OUT)/version
	@echo "building the machine's commands without runtime/secret (a minute)"
	@mkdir -p $(@D)
	@STAMP="$(STAMP)" GOEXPERIMENT= uroot-cmds/build-busybox $@.new ./initagent $(OURS) $(UROOT) >$(OUT)/makebb-forgetful.log 2>&1 || { cat $(OUT)/makebb-forgetful.log; exit 1; }
	@mv $@.new $@

# Boot tests that do not fit into the hour of `make test`: `make more-boot-tests` runs them.
MORE := ^(TestLayouts|TestBtrfs|TestGrow|TestGrowBtrfs|TestGrowCuts|TestEarlierRelease|TestBadUpdate|TestLiveDebian|TestConsoleUpdate|TestNextUpdate|TestPatches|TestNoTPMOptional|TestOptionalOutsideSetupMode|TestProvisioningCut|TestEnrollmentCut|TestStartupCuts|TestMemoryControl|TestOtherMachine|TestOldMachine|TestBuses|TestMoreBuses|TestStorage|TestBadDisks|TestCard|TestReinstall|TestNewKeys|TestMemoryKeyboard|TestKeymap|TestPad|TestManagerRevoked|TestLoaderRevoked|TestModuleKey|TestExtension|TestExtensionUpdate|TestMicrocode|TestFirmwareUpdater|TestFreeSpace|TestScreens|TestDesktop|TestDesktopUpdate)$$
BOOT_TEST = HALOGEN_FORGETFUL=$(abspath $(OUT)/forgetful/bb) HALOGEN_IMAGES=$(abspath $(OUT)/images) HALOGEN_OUT=$(abspath $(OUT)/qemu) HALOGEN_TOOLS13=$(abspath $(OUT)/tools13) HALOGEN_DEBIAN=$(abspath $(OUT)/rootfs/debian) \
	go test -count=1 -timeout 75m -parallel 64 -v ./qemu-tests

.PHONY: more-boot-tests
more-boot-tests: $(OUT)/tools13.stamp $(OUT)/forgetful/bb ## systems with other inits, and machines that take long
	@$(MAKE) --no-print-directory -j2 RUN=Updater test-images more-test-images $(LAYOUTS) $(BTRFS) $(GROW) $(EXTENDED) $(DESKTOPS) $(OUT)/images/earlier-1/disk.img
	@$(BOOT_TEST) -run '$(MORE)'

.PHONY: boot-test
boot-test: $(OUT)/tools13.stamp $(if $(findstring Memory,$(RUN)),$(OUT)/forgetful/bb) ## boot the images in QEMU (RUN=REGEX: these tests alone, whichever target has them)
	@$(MAKE) --no-print-directory -j2 test-images $(if $(RUN),more-test-images) $(if $(findstring Layouts,$(RUN)),$(LAYOUTS)) $(if $(findstring Btrfs,$(RUN)),$(BTRFS)) $(if $(findstring Grow,$(RUN)),$(GROW)) $(if $(findstring Extension,$(RUN)),$(EXTENDED)) $(if $(findstring Desktop,$(RUN)),$(DESKTOPS)) $(if $(findstring Earlier,$(RUN)),$(OUT)/images/earlier-1/disk.img)
	@echo "boot tests, and how long each takes beside another:"
	@$(BOOT_TEST) $(if $(RUN),-run '$(RUN)',-skip '$(MORE)') $(if $(UPDATE),-update) | tee $(OUT)/boot.log | grep --line-buffered -E '^( *--- |ok|FAIL)|of processor time$$' || { grep -vE '^ *(=== |--- PASS)' $(OUT)/boot.log; exit 1; }
	@! grep -q 'no tests to run' $(OUT)/boot.log || { echo 'no boot test matches RUN=$(RUN)'; exit 1; }

# The README's pictures, and what draws them.
SCREENSHOTS := qemu-tests/screenshots
DRAWN := initagent/console initagent/recoverykey initagent/recovery initagent/setup builder/install/screen builder/halogen/installscreen.go

.PHONY: screenshots
screenshots: ## take the README's pictures and the golden screens again, off the screens of machines
	@$(MAKE) --no-print-directory boot-test RUN='^TestScreens$$$$' UPDATE=yes
	@install -m 644 $(patsubst %,$(OUT)/qemu/screens/%.png,installer recovery-key console) $(SCREENSHOTS)/

.PHONY: desktop-screenshot
desktop-screenshot: ## take the README's picture of the desktop again (an hour)
	@$(MAKE) --no-print-directory boot-test RUN='^TestDesktop$$$$'
	@install -m 644 $(OUT)/qemu/screens/desktop/6-findmnt.png $(SCREENSHOTS)/desktop.png

.PHONY: stale-screenshots
stale-screenshots: ## fail with what has changed since the README's pictures were taken
	@taken=$$(git log -1 --format=%H -- $(SCREENSHOTS)) && changed=$$(git log --format='%h %s' "$$taken.." -- $(DRAWN)) && \
	{ [ -z "$$changed" ] || { echo 'since the pictures were taken (make screenshots takes them again):'; echo "$$changed"; exit 1; }; }

# --- Measurements ---------------------------------------------------------------

# What others use instead, and is in no list above.
RIVALS := pigz casync
$(OUT)/rivals.stamp: Makefile | $(OUT)/tools.stamp
	@missing=$$(for p in $(RIVALS); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	[ -z "$$missing" ] || DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >$(OUT)/apt.log 2>&1 || { tail -n 20 $(OUT)/apt.log; exit 1; }
	@touch $@

# A Debian 13 with the images' kernel, and the generators of initramfs images.
$(OUT)/rivals13.stamp: | $(OUT)/tools.stamp
	@echo "making a Debian 13 with initramfs-tools and dracut (a minute)"
	@rm -rf $(OUT)/rivals13
	@main=$$(builder/recipes/debian/mirror) && security=$$(builder/recipes/debian/mirror debian-security) && security=$${security:-$${main%/debian}/debian-security} && \
	mmdebstrap --quiet --variant=apt --aptopt='APT::Install-Recommends "false"' \
		--include=linux-image-amd64,initramfs-tools,cryptsetup-initramfs,dracut-core,systemd-cryptsetup,tpm2-tools,libtss2-tcti-device0,cryptsetup-bin,e2fsprogs,dmsetup,kmod,zstd,erofs-utils \
		trixie $(OUT)/rivals13 "deb $$main trixie main" "deb $$main trixie-updates main" "deb $$security trixie-security main"
	@touch $@

# The module proxy has no release of booster; without its source it is left out.
BOOSTER := 57b030b1d65ff9bd3b1672a1c362461c68033a9a
$(OUT)/booster.stamp: | $(OUT)/tools.stamp
	@rm -rf $(OUT)/booster $(OUT)/booster-source && mkdir -p $(OUT)/booster-source
	@cd $(OUT)/booster-source && git init -q && if timeout 60 git fetch -q --depth 1 https://github.com/anatol/booster $(BOOSTER) 2>/dev/null; then \
		git checkout -q FETCH_HEAD && go build -o ../booster/generator ./generator && go build -trimpath -ldflags='-s -w' -o ../booster/init ./init; \
	else echo "the source of booster cannot be had: it is not measured"; fi
	@touch $@

# ROWS=1,4 measures only these; RUNS=9 makes the medians better; GROWTH=no leaves out
# how the costs grow with the image, which takes 59 GB of disk. The results are
# $(OUT)/bench/bench.json, and as a picture bench.svg. What is worse than the ratios of
# qemu-tests/bench/baseline.json is said; BASELINE=set makes the results the next ones.
ROWS ?=
GROWTH ?=
RUNS ?= 5
BASELINE ?=
BENCH = $(OUT)/bench/bench -out $(OUT)/bench -baseline qemu-tests/bench/baseline.json $(if $(filter set,$(BASELINE)),-set-baseline)
.PHONY: bench
bench: $(OUT)/rivals.stamp $(OUT)/rivals13.stamp $(OUT)/tools13.stamp $(OUT)/booster.stamp $(OUT)/rootfs/debian.stamp \
	$(patsubst %,$(OUT)/images/%/disk.img,debian-1 update-1 update-2) ## measure beside what others use: an hour
	@mkdir -p $(OUT)/bench
	@go build -o $(OUT)/bench/bench ./qemu-tests/bench
	@$(if $(SUDO),$(SUDO) env PATH="$$PATH") $(BENCH) -images $(OUT)/images -rootfs $(OUT)/rootfs/debian -tools $(OUT)/tools13 -chroot $(OUT)/rivals13 -bin bin -key $(KEY) \
		-runs $(RUNS) $(if $(ROWS),-rows $(ROWS)) $(if $(filter no,$(GROWTH)),-no-growth) $(if $(wildcard $(OUT)/booster/init),-booster $(OUT)/booster)

.PHONY: faults
faults: ## list the numbered faults that no test shows (qemu-tests/FAULTS.md)
	@sed -n 's/^| \([0-9A-Z]*\) | \(.*\) | .* | \*\*no test\*\* |$$/\1  \2/p' qemu-tests/FAULTS.md

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin $(OUT)
