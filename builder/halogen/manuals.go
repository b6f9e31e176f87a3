package main

import (
	"strings"

	"halogenos.internal/builder/manpage"
	"halogenos.internal/builder/reports"
)

// A manual is a page: what --help does not say of a command.
type manual struct {
	command string // empty for the program
	about   string // what comes before the program's list of commands
	manpage.Page
}

// Variables of the environment that several commands read.
var (
	proxies = manpage.Entry{Name: "https_proxy , http_proxy , no_proxy", Text: "The proxy to a server, where --proxy names none."}
	roots   = manpage.Entry{Name: "SSL_CERT_FILE", Text: "A file with the certificates of authorities, in place of the system's."}
	date    = manpage.Entry{Name: "SOURCE_DATE_EPOCH", Text: "Date of everything in the release, in seconds since 1970."}
)

// manuals are all pages.
func manuals() []manual {
	return []manual{programManual(), buildManual(),
		{command: "run", Page: manpage.Page{
			Examples: []manpage.Example{
				{Text: "A new machine, whose disk is a build's:", Lines: "halogen run --state machine --image out/disk.img"},
				{Text: "The same machine again, where it was:", Lines: "halogen run --state machine"},
				{Text: "A desktop in a window:", Lines: "halogen run --state machine --image out/disk.img --display window \\\n    --memory 4096 --cpus 2"},
				{Text: "Five minutes of it for a script, which looks at the last picture:", Lines: "timeout 300 halogen run --state machine \\\n    --screenshot screen.png </dev/null"},
			},
			Environment: []manpage.Entry{{Name: "WAYLAND_DISPLAY , DISPLAY", Text: "The display server that a window appears on."}},
			See:         []string{"halogen 1", "halogen-build 1", "halogen-install 1"},
		}},
		releaseManual(),
		{command: "release list", Page: manpage.Page{
			Names: []string{"halogen-release-list", "halogen-release-promote", "halogen-release-rollout", "halogen-release-withdraw", "halogen-release-step",
				"halogen-release-prune", "halogen-release-refresh"},
			Summary: "change what a release server offers", Environment: []manpage.Entry{proxies, roots},
			Examples: []manpage.Example{
				{Text: "Version 7, which machines on beta have tried, for all others, a tenth of them first:", Lines: "halogen release promote 7 --server www/os --rollout 10"},
				{Text: "Take it back:", Lines: "halogen release withdraw 7 --server www/os"},
			},
			See: []string{"halogen-release 1", "manifest.env 5"},
		}},
		{command: "release archive", Page: manpage.Page{Summary: "make the archive of a release for signing by hand", See: []string{"halogen-release 1", "manifest.env 5", "release.json 5"}}},
		{command: "install", Page: manpage.Page{
			Environment: []manpage.Entry{proxies, roots},
			Examples: []manpage.Example{{
				Text:  "Install the stable release of a server:",
				Lines: "halogen install --list\nhalogen install --disk /dev/nvme0n1 --key release-key.asc \\\n    https://example.org/os/x86_64/desktop",
			}},
			See: []string{"halogen 1", "halogen-build 1", "halogen-setup 1", "manifest.env 5", "setup.json 5"},
		}},
		{command: "setup", Page: manpage.Page{See: []string{"halogen-install 1", "setup.json 5"}}},
		{command: "keys", Page: manpage.Page{
			Examples: []manpage.Example{{Text: "Make the keys of a distribution, in memory or on an encrypted disk:", Lines: "halogen keys generate --out keys --name 'Example OS' \\\n    --email os@example.org"}},
			See:      []string{"gpg 1", "gpg-agent 1", "halogen-build 1", "halogen-release 1", "uki.conf 5"},
		}},
		{command: "inspect", Page: manpage.Page{See: []string{"halogen 1", "halogen-diff 1", "release.json 5"}}},
		{command: "reports", Page: manpage.Page{
			Examples: []manpage.Example{
				{Text: "A page of how releases fare, each hour, and the next wave of the one that is stable, once a day:", Lines: "halogen reports --html reports >www/fare.html\n" +
					"halogen release rollout --server www/os --reports reports \\\n    --key keys/release-key.secret.asc --password-file password"},
				{Text: "nginx as the server that takes reports, and shows none:", Lines: strings.TrimSuffix(reports.Nginx, "\n")},
			},
			See: []string{"halogen 1", "halogen-release 1", "halogen-release-list 1", "ota.conf 5", "uki.conf 5", "ota 8"},
		}},
		{command: "diff", Page: manpage.Page{
			Examples: []manpage.Example{{Text: "In what do two builds differ?", Lines: "halogen diff out/1 out/2"},
				{Text: "What will machines with the first fetch?", Lines: "halogen diff --update --patches out/1 out/2"}},
			See: []string{"halogen-build 1", "halogen-inspect 1"},
		}},
		verifyReportManual(),
		certifyManual(),
		{command: "hardware-report", Page: manpage.Page{See: []string{"halogen 1", "halogen-install 1"}}},
	}
}

func programManual() manual {
	return manual{
		about: "HalogenOS turns the root file system of any Linux distribution into a signed operating system that verifies\n" +
			"every block it reads, encrypts its data for one machine in one state, and takes updates that it can take back.\n" +
			"halogen is what a distributor uses of it. Its commands are:\n",
		Page: manpage.Page{
			Summary: "make, publish and install releases of an operating system",
			Files: []manpage.Entry{
				{Name: "/usr/lib/halogen/", Text: "the programs of the machines that are built: bb, ota and halogenctl; the directory of halogen itself, wherever that is"},
				{Name: "uki.conf", Text: "describes an image"},
				{Name: "/usr/share/doc/halogen/examples/", Text: "uki.conf for Debian, and recipes for root file systems"},
			},
			Examples: []manpage.Example{
				{Text: "From a root file system to a release that machines take:", Lines: "halogen keys generate --out keys --name 'Example OS'\n" +
					"halogen build --config uki.conf --rootfs rootfs.tar --version 7 \\\n    --out out/7 --disk\n" +
					"halogen run --state machine --image out/7/disk.img\n" +
					"halogen release --build out/7 --server www/os \\\n    --key keys/release-key.secret.asc"},
			},
			See: []string{"halogen-build 1", "halogen-certify 1", "halogen-diff 1", "halogen-hardware-report 1", "halogen-inspect 1", "halogen-install 1", "halogen-keys 1",
				"halogen-release 1", "halogen-reports 1", "halogen-run 1", "halogen-setup 1", "halogen-verify-report 1", "manifest.env 5", "ota.conf 5", "release.json 5", "state.conf 5", "uki.conf 5", "ota 8"},
		},
	}
}

func buildManual() manual {
	return manual{command: "build", Page: manpage.Page{
		Environment: []manpage.Entry{date},
		Files: []manpage.Entry{
			{Name: "system.erofs", Text: "the system image"},
			{Name: "uki.efi", Text: "kernel, initramfs and command line, as one file for the firmware; each machine signs it for itself"},
			{Name: "bootx64.efi", Text: "the boot manager"},
			{Name: "release.json", Text: "describes these; it is there when all of them are"},
			{Name: "sbom.cdx.json", Text: "bill of materials, CycloneDX 1.6"},
			{Name: "provenance.intoto.json", Text: "how it was made, SLSA 1.0 in an in-toto statement"},
			{Name: "disk.img", Text: "with --disk"},
			{Name: "NAME.raw", Text: "of each extension"},
			{Name: "installer.img", Text: "with --installer"},
		},
		Examples: []manpage.Example{
			{Text: "Version 7, as root so that owners are kept:", Lines: "halogen build --config uki.conf --rootfs rootfs.tar --version 7 \\\n    --out out/7 --previous out/6 --disk"},
			{Text: "The same, with a plan of how many more releases machines have room for:", Lines: "halogen build --config uki.conf --rootfs rootfs.tar --version 7 \\\n    --out out/7 --server www/os"},
			{Text: "Everything in a container, the signed release included:", Lines: "halogen build --container --version 7 --out out/7 \\\n    --release-key keys/release-key.secret.asc \\\n    --release-key-password-file password"},
		},
		See: []string{"mkfs.erofs 1", "halogen 1", "halogen-inspect 1", "halogen-keys 1", "halogen-release 1", "halogen-run 1", "release.json 5", "state.conf 5", "uki.conf 5"},
	}}
}

func releaseManual() manual {
	return manual{command: "release", Page: manpage.Page{
		Environment: []manpage.Entry{proxies, roots},
		Examples: []manpage.Example{
			{Text: "Publish version 7 for machines on the channel beta:", Lines: "halogen release --build out/7 --server www/os --channel beta \\\n    --key keys/release-key.secret.asc"},
			{Text: "Look at the server as a machine does:", Lines: "halogen release --verify https://example.org/os/x86_64/desktop \\\n    --pinned keys/release-key.asc"},
		},
		See: []string{"gpg 1", "rsync 1", "halogen-build 1", "halogen-keys 1", "halogen-release-archive 1", "halogen-release-list 1", "manifest.env 5", "release.json 5"},
	}}
}

func verifyReportManual() manual {
	return manual{command: "verify-report", Page: manpage.Page{
		Summary:     "judge a machine's proof of which release it has started",
		Environment: []manpage.Entry{proxies, roots},
		Examples: []manpage.Example{{
			Text: "Ask a machine, and judge what it says:",
			Lines: "nonce=$(openssl rand -hex 16)\n" +
				"ssh root@machine halogenctl boot-report --nonce $nonce >report.json\n" +
				"halogen verify-report report.json --nonce $nonce \\\n    --save-key machine.key --pinned release-key.asc \\\n    --release https://example.org/os/x86_64/desktop",
		}},
		See: []string{"halogen 1", "halogen-certify 1", "halogen-release 1", "release.json 5", "boot-report 8"},
	}}
}

func certifyManual() manual {
	return manual{command: "certify", Page: manpage.Page{
		Summary: "find out that a machine's attestation key is a certified TPM's",
		Examples: []manpage.Example{{
			Text: "Learn a machine's key from the certificate of its TPM, and judge its report by it:",
			Lines: "ssh root@machine halogenctl boot-report >report.json\n" +
				"halogen certify report.json --ek-certificate ek.der --ca maker.pem \\\n    --challenge challenge.json\n" +
				"answer=$(ssh root@machine halogenctl boot-report \\\n    --challenge /dev/stdin <challenge.json)\n" +
				"key=$(halogen certify --challenge challenge.json --answer $answer)\n" +
				"halogen verify-report report.json --key $key --pinned release-key.asc \\\n    --release https://example.org/os/x86_64/desktop",
		}},
		See: []string{"halogen 1", "halogen-verify-report 1", "tpm2_getekcertificate 1", "boot-report 8"},
	}}
}
