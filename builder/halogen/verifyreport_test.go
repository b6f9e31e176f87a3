package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bootreport/reporttest"
	"halogenos.internal/boot/policy"
	"halogenos.internal/builder/release"
)

func TestVerifyReportCommandLines(t *testing.T) {
	name := policy.NameOf(nil).String()
	garbage := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(garbage, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "want one report, have 0"},
		{[]string{"r"}, exitUsage, "want --release"},
		{[]string{"r", "--release", "s"}, exitUsage, "anybody can have made the report"},
		{[]string{"r", "--release", "s", "--key", name, "--save-key", "f"}, exitUsage, "want --key or --save-key"},
		{[]string{"r", "--release", "s", "--key", name, "--nonce", "xy"}, exitUsage, "hexadecimal digits"},
		{[]string{"r", "--release", "s", "--key", name, "--nonce", ""}, exitUsage, "--nonce is empty"},
		{[]string{"r", "--release", "s", "--key", name, "--program", "00"}, exitUsage, "digest of 2 digits"},
		{[]string{"/nowhere", "--release", "s", "--key", name}, exitFailure, "/nowhere"},
		{[]string{garbage, "--release", "s", "--key", name}, exitFailure, "boot report: format 0, want 1"},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"verify-report"}, c.args...)...)
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("verify-report %q: exit code %d, stdout %q, stderr %q; want %d, %q", c.args, code, stdout, stderr, c.code, c.want)
		}
	}
}

const (
	reportNonce = "of this very minute"
	nonceDigits = "6f6620746869732076657279206d696e757465"
)

// A report of today's release is good by the build, by the server's directory and by the
// web; another machine's, one that answers another question and an older one are not.
func TestVerifyReport(t *testing.T) {
	out, _, _ := build(t)
	root, dir := filepath.Join(t.TempDir(), "www"), t.TempDir()
	if code, _, stderr := run(t, nil, "release", "--build", out, "--server", root); code != exitOK {
		t.Fatal(stderr)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(root)))
	defer web.Close()
	want, err := release.ExpectBuild(out)
	if err != nil {
		t.Fatal(err)
	}
	s, other := reporttest.NewSigner(t), reporttest.NewSigner(t)
	name, err := bootreport.KeyName(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	older := *want.Release
	older.Version = 6
	write := func(file string, r *bootreport.Report) string {
		t.Helper()
		text, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", s.Of(t, want.Release, reportNonce))
	key := filepath.Join(dir, "machine.key")
	image := filepath.Join(root, want.Release.Arch, want.Release.ImageID)
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"a report nobody has seen before, of another release", []string{write("older", s.Of(t, &older, reportNonce)), "--release", out, "--save-key", key}, exitFailure, []string{"runs release 6, which is older than 7"}},
		{"first use", []string{good, "--release", out, "--nonce", nonceDigits, "--save-key", key}, exitOK, []string{"this machine runs release 7 of test-os for x86_64, under keys that call themselves its own, floor 2", "saved in " + key, "machine      " + name.String(), "owner (PK)", `because      "it is the newest"`, "by the TPM"}},
		{"the same machine", []string{good, "--release", root, "--nonce", nonceDigits, "--save-key", key}, exitOK, []string{"this machine runs release 7 of test-os for x86_64, under its own keys"}},
		{"the PK of another", []string{good, "--release", root, "--key", name.String(), "--pk", strings.Repeat("0", 64)}, exitFailure, []string{"somebody has cleared the keys"}},
		{"by the web", []string{good, "--release", web.URL + "/x86_64/test-os", "--key", name.String()}, exitOK, []string{"WARNING: without --nonce", "this machine runs release 7"}},
		{"its version", []string{good, "--release", image, "--version", "7", "--key", name.String()}, exitOK, []string{"this machine runs release 7"}},
		{"another machine", []string{write("other", other.Of(t, want.Release, reportNonce)), "--release", root, "--nonce", nonceDigits, "--save-key", key}, exitFailure, []string{"it is of another machine"}},
		{"replayed", []string{write("replayed", s.Of(t, want.Release, "of a minute ago")), "--release", root, "--nonce", nonceDigits, "--save-key", key}, exitFailure, []string{"does not prove that the machine runs release 7 of test-os", "may be an old one"}},
		{"older", []string{filepath.Join(dir, "older"), "--release", root, "--nonce", nonceDigits, "--save-key", key}, exitFailure, []string{"older than 7"}},
		{"a version that is not there", []string{good, "--release", image, "--version", "8", "--key", name.String()}, exitFailure, []string{"release 8 is not on the server"}},
		{"a version of a build", []string{good, "--release", out, "--version", "7", "--key", name.String()}, exitUsage, []string{"go with a server"}},
		{"no server", []string{good, "--release", dir, "--key", name.String()}, exitFailure, []string{"no manifest.env"}},
		{"a key's file with something else", []string{good, "--release", out, "--save-key", filepath.Join(out, "uki.efi")}, exitFailure, []string{"too large"}},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"verify-report"}, c.args...)...)
		for _, want := range c.want {
			if code != c.code || !strings.Contains(stdout+stderr, want) {
				t.Errorf("%s: exit code %d, %s%s; want %d, %q", c.name, code, stdout, stderr, c.code, want)
			}
		}
		if code != exitOK && stdout != "" {
			t.Errorf("%s: refused, and said %q", c.name, stdout)
		}
	}
	code, _, stderr := run(t, nil, "verify-report", good, "--release", out, "--key", strings.Repeat("0", 68))
	if code != exitFailure || !strings.Contains(stderr, "want the name of an attestation key") {
		t.Errorf("a name that is none: exit code %d, %s", code, stderr)
	}
	code, stdout, _ := run(t, nil, "verify-report", good, "--json", "--release", out, "--key", name.String())
	var found bootreport.Finding
	if err := json.Unmarshal([]byte(stdout), &found); code != exitOK || err != nil || found.Machine != name || !found.OwnKeys {
		t.Errorf("exit code %d, %s, %v", code, stdout, err)
	}
}
