package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	out, _, _ := build(t)
	changed := filepath.Join(t.TempDir(), "release.json")
	text, err := os.ReadFile(filepath.Join(out, "release.json"))
	if err == nil {
		err = os.WriteFile(changed, []byte(strings.Replace(string(text), `"epoch": 0`, `"epoch": 5`, 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{out, out}, exitOK, "", ""},
		{[]string{out, out, "--json"}, exitOK, "[]\n", ""},
		{[]string{filepath.Join(out, "release.json"), changed}, exitFailure, "release.json.epoch: 0 and 5\n", "differ in 1 places"},
		{[]string{filepath.Join(out, "release.json"), changed, "--json"}, exitFailure, `"what": "0 and 5"`, "differ in 1 places"},
		{[]string{"--update", out, out}, exitOK, "MB to fetch, ", ""},
		{[]string{"--update", "--patches", "--json", out, out}, exitOK, `"directories": []`, ""},
		{[]string{"--update", out, filepath.Join(out, "none")}, exitFailure, "", "no such file"},
		{[]string{"--patches", out, out}, exitUsage, "", "belongs to --update"},
		{[]string{out}, exitUsage, "", "want two"},
		{[]string{out, filepath.Join(out, "none")}, exitFailure, "", "no such file"},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"diff"}, c.args...)...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || c.stdout == "" && stdout != "" || !strings.Contains(stderr, c.stderr) {
			t.Errorf("diff %q: exit code %d, %q, %q; want %d, %q, %q", c.args, code, stdout, stderr, c.code, c.stdout, c.stderr)
		}
	}
}
