package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo \"$1 and $2\"\nexit 4\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args      []string
		in        string
		code      int
		out, errs string
	}{
		{[]string{"-c", "echo a; exit 3"}, "", 3, "a\n", ""},
		{[]string{"-c", "false"}, "", 1, "", ""},
		{[]string{script, "one", "two"}, "", 4, "one and two\n", ""},
		{nil, "echo typed\nfalse\nexit\n", 0, "$ typed\n$ $ ", ""},
		{[]string{"/no-such-script"}, "", 1, "", "sh: open /no-such-script"},
		{[]string{"-c", "echo )"}, "", 1, "", "sh: 1:6: "},
		{[]string{"--help"}, "", 0, help, ""},
		{[]string{"--colour"}, "", 2, "", help},
	} {
		in := filepath.Join(t.TempDir(), "in")
		if err := os.WriteFile(in, []byte(c.in), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(in)
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		code := run(c.args, f, &out, &errs, nil)
		if code != c.code || out.String() != c.out || !strings.Contains(errs.String(), c.errs) || (c.errs == "") != (errs.Len() == 0) {
			t.Errorf("sh %q: %d, %q, %q", c.args, code, &out, &errs)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
