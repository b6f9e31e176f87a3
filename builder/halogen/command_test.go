package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/inspect"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// run executes a command line and returns its exit code and what it printed.
func run(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	machine := rootfstest.Machine(t)
	c := command{
		stdout: &out, stderr: &log,
		getenv:     func(name string) string { return env[name] },
		executable: func() (string, error) { return filepath.Join(machine, "halogen"), nil },
	}
	code = c.run(args)
	return code, out.String(), log.String()
}

func TestUsage(t *testing.T) {
	build := []string{"build", "--rootfs", "r", "--version", "1", "--out", "o"}
	for _, c := range []struct {
		name   string
		env    map[string]string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"nothing", nil, nil, exitUsage, "", "usage: halogen"},
		{"help", nil, []string{"help"}, exitOK, "usage: halogen", ""},
		{"--help", nil, []string{"--help"}, exitOK, "inspect", ""},
		{"version", nil, []string{"--version"}, exitOK, "halogen unknown\n", ""},
		{"unknown command", nil, []string{"bulid"}, exitUsage, "", `unknown command "bulid"`},
		{"help of a command", nil, []string{"build", "--help"}, exitOK, "--disk-size SIZE", ""},
		{"help of another", nil, []string{"inspect", "-h"}, exitOK, "--json", ""},
		{"hardware report", nil, []string{"hardware-report"}, exitOK, "halogen-hardware-report 1\n", ""},
		{"hardware report of something", nil, []string{"hardware-report", "x"}, exitUsage, "", "want no arguments"},
		{"setup without a file", nil, []string{"setup"}, exitUsage, "", "want --check FILE"},
		{"setup of a file that is not there", nil, []string{"setup", "--check", "/nonexistent"}, exitFailure, "", "/nonexistent"},
		{"answers that cannot be taken", nil, []string{"install", "--disk", "/dev/null", "--setup", "/dev/null", "r"}, exitFailure, "", "/dev/null"},
		{"unknown option", nil, append(build, "--verbose"), exitUsage, "", "-verbose"},
		{"stray argument", nil, append(build, "x"), exitUsage, "", `"x"`},
		{"no root file system", nil, []string{"build", "--version", "1", "--out", "o"}, exitUsage, "", "--rootfs is missing"},
		{"no version", nil, []string{"build", "--rootfs", "r", "--out", "o"}, exitUsage, "", "--version is missing"},
		{"no output", nil, []string{"build", "--rootfs", "r", "--version", "1"}, exitUsage, "", "--out is missing"},
		{"disk size without a disk", nil, append(build, "--disk-size", "1G"), exitUsage, "", "--disk-size without --disk"},
		{"disk size", nil, append(build, "--disk", "--disk-size", "huge"), exitUsage, "", "--disk-size"},
		{"source date", map[string]string{"SOURCE_DATE_EPOCH": "today"}, build, exitUsage, "", "SOURCE_DATE_EPOCH"},
		{"source date before there were any", map[string]string{"SOURCE_DATE_EPOCH": "-1"}, build, exitUsage, "", "SOURCE_DATE_EPOCH"},
		{"configuration that is not there", nil, append(build, "--config", "/nonexistent/uki.conf"), exitFailure, "", "/nonexistent/uki.conf"},
		{"inspect nothing", nil, []string{"inspect"}, exitUsage, "", "want one file, have 0"},
		{"inspect two", nil, []string{"inspect", "a", "b"}, exitUsage, "", "want one file, have 2"},
		{"inspect what is not there", nil, []string{"inspect", "/nonexistent"}, exitFailure, "", "/nonexistent"},
		{"inspect a directory", nil, []string{"inspect", "/"}, exitFailure, "", "not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := run(t, c.env, c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
			if c.stdout == "" && stdout != "" {
				t.Errorf("a fault went to the standard output: %q", stdout)
			}
		})
	}
}

// FAULTS 3
func TestVersionsThatAreNone(t *testing.T) {
	for _, version := range []string{"0", "-1", "01", "1.0", "v1", "9223372036854775808", "1 ", "0x1"} {
		code, _, stderr := run(t, nil, "build", "--rootfs", "r", "--out", "o", "--version", version)
		if code != exitUsage || !strings.Contains(stderr, "--version") {
			t.Errorf("%q: exit code %d, %s", version, code, stderr)
		}
	}
}

func build(t *testing.T, args ...string) (out, stdout, stderr string) {
	t.Helper()
	testkit.Need(t, "mkfs.erofs")
	dir := t.TempDir()
	conf := filepath.Join(dir, "uki.conf")
	text := "[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nSlotSize=16M\nReleaseKey=none\n[Initramfs]\nModules=one ?two\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out = filepath.Join(dir, "out")
	args = append([]string{"build", "--config", conf, "--rootfs", rootfstest.Minimal().Write(t, false), "--version", "7", "--out", out}, args...)
	code, stdout, stderr := run(t, map[string]string{"SOURCE_DATE_EPOCH": "1600000000"}, args...)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	return out, stdout, stderr
}

func TestBuildAndInspect(t *testing.T) {
	out, stdout, stderr := build(t, "--disk", "--disk-size", "600M")
	if want := "system.erofs\nuki.efi\nbootx64.efi\nsbom.cdx.json\nprovenance.intoto.json\ndisk.img\nrelease.json\n"; strings.ReplaceAll(stdout, out+"/", "") != want {
		t.Errorf("printed %q", stdout)
	}
	for _, say := range []string{"WARNING: ReleaseKey=none", "packing the system image: ", "release 7 of test-os in "} {
		if !strings.Contains(stderr, say) {
			t.Errorf("nothing said of %q: %s", say, stderr)
		}
	}
	for name, want := range map[string][]string{
		"uki.efi":      {"UKI", ".linux", "after enter-initrd", "quiet lockdown=integrity", "IMAGE_VERSION=7", "test-os 7 for x86_64", "signatures", "none"},
		"bootx64.efi":  {"EFI image", "Authenticode"},
		"disk.img":     {"both copies are good", "system-a", "EFI/Linux/test-os_7.efi", "version 7, for partition 2", "EROFS"},
		"system.erofs": {"EROFS", "2020-09-13T12:26:40Z"},
		"release.json": {"test-os 7 for x86_64", "2020-09-13T12:26:40Z", "uki.efi"},
	} {
		code, stdout, stderr := run(t, nil, "inspect", filepath.Join(out, name))
		if code != exitOK {
			t.Errorf("inspect %s: exit code %d, %s", name, code, stderr)
		}
		for _, say := range want {
			if !strings.Contains(stdout, say) {
				t.Errorf("inspect %s says nothing of %q:\n%s", name, say, stdout)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	out, stdout, _ := build(t, "--json")
	var summary struct {
		Release struct {
			RootHash string `json:"root_hash"`
			PCR11    string `json:"pcr11"`
		}
		Files []string
	}
	if err := json.Unmarshal([]byte(stdout), &summary); err != nil || len(summary.Files) != 6 || summary.Files[5] != filepath.Join(out, "release.json") {
		t.Fatalf("%+v, %v", summary, err)
	}
	code, stdout, stderr := run(t, nil, "inspect", filepath.Join(out, "uki.efi"), "--json")
	if code != exitOK {
		t.Fatal(stderr)
	}
	var r inspect.Report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatal(err)
	}
	if r.Kind != "efi" || r.EFI.PCR11.Stub.String() != summary.Release.PCR11 || r.EFI.Contract.Root().String() != summary.Release.RootHash {
		t.Errorf("inspect says %+v, build said %+v", r.EFI, summary)
	}
}

func TestExecutableThatIsNotFound(t *testing.T) {
	var out, log bytes.Buffer
	c := command{stdout: &out, stderr: &log, getenv: os.Getenv, executable: func() (string, error) { return "", errors.New("no /proc") }}
	if code := c.run([]string{"build", "--rootfs", "r", "--version", "1", "--out", "o"}); code != exitFailure || !strings.Contains(log.String(), "no /proc") {
		t.Errorf("exit code %d, %s", code, log.String())
	}
}
