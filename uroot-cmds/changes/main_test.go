package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
)

// A box is a machine of two directories, with a conflict in each of these files.
type box struct {
	t             *testing.T
	merged, image string
	notice        string
}

func newBox(t *testing.T, conflicts ...string) *box {
	t.Helper()
	dir := t.TempDir()
	b := &box{t, filepath.Join(dir, "merged"), filepath.Join(dir, "image"), filepath.Join(dir, "run/conflicts")}
	for _, d := range []string{b.merged, b.image, filepath.Dir(b.notice)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	base := filepath.Join(dir, "base")
	for _, name := range conflicts {
		b.write(base, name, "line 1\n")
		b.write(b.image, name, "line 1 of the image\n")
		b.write(b.merged, name, "line 1 of mine\n")
	}
	b.write(base, "other", "")
	b.update(base)
	return b
}

func (b *box) write(tree, name, text string) {
	b.t.Helper()
	path := filepath.Join(tree, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// update leaves the list that the merge of an update leaves.
func (b *box) update(base string) {
	b.t.Helper()
	r, err := etcmerge.Plan(b.t.Context(), directory{base}, directory{b.image}, directory{b.merged}, etcmerge.Options{From: 2, To: 3})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range r.Changes {
		if c.Path == etcmerge.ListPath {
			b.write(b.merged, c.Path, string(c.Content))
		}
	}
}

func (b *box) run(args ...string) (int, string, string) {
	b.t.Helper()
	open := func() (*changes.Machine, error) {
		var files []*os.File
		for _, name := range []string{b.merged, b.image} {
			f, err := os.Open(name)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
		return changes.New(changes.Pair{Path: "/etc", Merged: files[0], Image: files[1]}), nil
	}
	return commandtest.Run(cmd(open, b.notice), args...)
}

// says runs the command, which must be well and say all of this.
func (b *box) says(args []string, wants ...string) string {
	b.t.Helper()
	code, out, errs := b.run(args...)
	if code != command.OK || errs != "" {
		b.t.Fatalf("changes %q: %d, %s", args, code, errs)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			b.t.Errorf("changes %q lacks %q:\n%s", args, want, out)
		}
	}
	return out
}

func (b *box) read(name string) string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.merged, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

func TestUse(t *testing.T) {
	fails := func() (*changes.Machine, error) { return nil, errors.New("not here") }
	whole := cmd(fails, "")
	commandtest.Use(t, whole)
	none := cmd(func() (*changes.Machine, error) { return nil, changes.ErrNoOverlay }, "")
	if code, out, errs := commandtest.Run(none, "--summary"); code != command.OK || out+errs != "" {
		t.Errorf("without an overlay: %d, %q, %q", code, out, errs)
	}
	if code, _, errs := commandtest.Run(whole); code != command.Failed || errs != "changes: not here\n" {
		t.Errorf("%d, %q", code, errs)
	}
	for _, args := range []string{
		"--reset", "--keep", "--take-theirs", "--all-conflicts", "--reset --all-conflicts", "--keep --take-theirs /etc/x", "--keep --all-conflicts /etc/x",
		"--summary /etc/x", "--summary --json", "--summary --keep /etc/x", "--json /etc/x", "/etc/x --reset", "--reset --keep /etc/x",
	} {
		if code, out, errs := commandtest.Run(whole, strings.Fields(args)...); code != command.Usage || out != "" || !strings.HasSuffix(errs, help) {
			t.Errorf("changes %s: %d, %q, %q", args, code, out, errs)
		}
	}
}

func TestList(t *testing.T) {
	b := newBox(t)
	b.says(nil, "nothing differs from the image\n")
	b = newBox(t, "clash")
	b.write(b.merged, "own\x1b[2J", "")
	b.write(b.image, "gone", "")
	b.says(nil, "changed  20", "  /etc/clash: content\n", `$'/etc/own\033[2J'`+"\n", "removed  -                 /etc/gone\n",
		"an update changed these as well; this machine's are in effect:\n  /etc/clash: ", "(since version 3)\n")
	var r changes.Report
	if err := json.Unmarshal([]byte(b.says([]string{"--json"})), &r); err != nil || len(r.Conflicts) != 1 || r.Conflicts[0].Path != "/etc/clash" || r.Conflicts[0].Since != 3 || len(r.Changes) < 3 {
		t.Errorf("%+v, %v", r, err)
	}
	b.says([]string{"/etc/clash"}, "-line 1 of the image\n+line 1 of mine\n")
}

// Each way to decide ends a conflict, and only that one.
func TestDecide(t *testing.T) {
	b := newBox(t, "keep", "theirs", "reset", "edit", "d/last")
	b.says([]string{"--keep", "/etc/keep"}, "/etc/keep: this machine's stays\n")
	b.says([]string{"--take-theirs", "/etc/theirs"}, "/etc/theirs: the image's again\n")
	b.says([]string{"--reset", "/etc/reset"}, "/etc/reset: the image's again\n")
	b.write(b.merged, "edit", "both\n")
	if b.read("keep") != "line 1 of mine\n" || b.read("theirs") != "line 1 of the image\n" || b.read("reset") != "line 1 of the image\n" {
		t.Error("a file is not as it was decided")
	}
	out := b.says([]string{"--summary"}, "1 file was changed both here and by an update")
	if text, err := os.ReadFile(b.notice); err != nil || string(text) != out {
		t.Errorf("left for those who log in: %q, %v", text, err)
	}
	for _, args := range [][]string{{"--keep", "/etc/keep"}, {"--take-theirs", "/etc/theirs"}, {"--keep", "/etc/edit"}, {"--keep", "/etc/none"}} {
		if code, _, errs := b.run(args...); code != command.Failed || !strings.Contains(errs, "is not among the conflicts that wait for a decision") {
			t.Errorf("changes %q: %d, %s", args, code, errs)
		}
	}
	b.says([]string{"--json", "--take-theirs", "--all-conflicts"}, `"given_back": [
    "/etc/d/last"
  ]`, `"removed": []`)
	if out := b.says([]string{"--summary"}); out != "" {
		t.Errorf("without conflicts: %q", out)
	}
	if _, err := os.Stat(b.notice); err == nil {
		t.Error("the notice stays")
	}
	b.says([]string{"--keep", "--all-conflicts"})
	b = newBox(t, "a", "b")
	b.says([]string{"--keep", "--all-conflicts"}, "/etc/a: this machine's stays\n/etc/b: this machine's stays\n")
	if out := b.says([]string{"--summary"}); out != "" {
		t.Errorf("all kept: %q", out)
	}
}

// What fails is said beside what is done.
func TestPartly(t *testing.T) {
	b := newBox(t)
	b.write(b.image, "gone", "x\n")
	b.write(b.merged, "own", "x\n")
	code, out, errs := b.run("--reset", "/etc/gone", "/etc/nothing", "/usr/x", "/etc/own")
	if code != command.Failed || out != "/etc/gone: the image's again\n/etc/own: removed; the image does not have it\n" || strings.Count(errs, "\n") != 2 {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	b.says([]string{"--reset", "/etc/gone"}, "/etc/gone: is the image's already\n")
}

// What fails is said, in JSON too, beside what was done of the same file, and of the others.
func TestFailed(t *testing.T) {
	do := func(name string) (*changes.Result, error) {
		switch name {
		case "/etc/half":
			return &changes.Result{Given: []string{"/etc/half/a"}}, errors.New("give /etc/half/b back: no room")
		case "/etc/none":
			return nil, errors.New("/etc/none: no such file")
		case "/etc/fails":
			return &changes.Result{}, errors.New("/etc/fails: no room")
		}
		return &changes.Result{Given: []string{name}}, nil
	}
	for _, c := range []struct {
		json bool
		out  string
	}{
		{false, "/etc/a: the image's again\n/etc/half/a: the image's again\n/etc/z: the image's again\n"},
		{true, `{"given_back":["/etc/a","/etc/half/a","/etc/z"],"removed":[],"left":[],"decided":[],"failed":[` +
			`{"path":"/etc/half","error":"give /etc/half/b back: no room"},{"path":"/etc/none","error":"/etc/none: no such file"},{"path":"/etc/fails","error":"/etc/fails: no room"}]}`},
	} {
		var out bytes.Buffer
		err := each(&command.Call{JSON: c.json, Stdout: &out}, []string{"/etc/a", "/etc/half", "/etc/none", "/etc/fails", "/etc/z"}, do)
		if err == nil || strings.Count(err.Error(), "\n") != 2 {
			t.Errorf("it ends with %v", err)
		}
		if c.json {
			text := bytes.Clone(out.Bytes())
			out.Reset()
			if err := json.Compact(&out, bytes.TrimSpace(text)); err != nil {
				t.Fatal(err)
			}
		}
		if out.String() != c.out {
			t.Errorf("it says\n%s\nwant\n%s", out.String(), c.out)
		}
	}
	b := newBox(t)
	b.write(b.image, "gone", "x\n")
	if code, out, errs := b.run("--json", "--reset", "/etc/gone", "/etc/nothing"); code != command.Failed || errs == "" || !strings.Contains(out, `"path": "/etc/nothing"`) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
}

// An account file is not replaced as a whole.
func TestAccounts(t *testing.T) {
	b := newBox(t)
	base := filepath.Join(t.TempDir(), "base")
	b.write(base, "passwd", "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n")
	b.write(b.image, "passwd", "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/usr/sbin:/bin/sh\n")
	b.write(b.merged, "passwd", "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/mine:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")
	b.update(base)
	b.says(nil, "/etc/passwd, entry daemon: ")
	for _, how := range []string{"--take-theirs", "--reset"} {
		if code, out, errs := b.run(how, "/etc/passwd"); code != command.Failed || out != "" || !strings.Contains(errs, "edit it (vipw") {
			t.Errorf("%s: %d, %s, %s", how, code, out, errs)
		}
	}
	if !strings.Contains(b.read("passwd"), "me:x:1000") {
		t.Error("a user is gone")
	}
	b.says([]string{"--keep", "/etc/passwd"}, "this machine's stays")
}

// What was left out is listed, counted, and taken off the list.
func TestLeftOut(t *testing.T) {
	b := newBox(t, "clash")
	list, err := etcmerge.ParseList([]byte(b.read(etcmerge.ListPath)))
	if err != nil {
		t.Fatal(err)
	}
	list.More = 3
	for _, name := range []etcmerge.Name{"/etc/clash", "/etc/lost", "/var/lib/x\x1b[2J"} {
		list.LeftOut = append(list.LeftOut, etcmerge.LeftOut{Path: name, Reason: "left out: because", Since: 3})
	}
	text, err := list.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.write(b.merged, etcmerge.ListPath, string(text))
	b.says(nil, "  and 3 more entries, ", "\nan update left these out, or they are not as they should be:\n  /etc/clash: left out: because (since version 3)\n", `  $'/var/lib/x\033[2J': left out`)
	out := b.says([]string{"--summary"}, "1 file was changed both", "\n3 files were left out by an update")
	if text, err := os.ReadFile(b.notice); err != nil || string(text) != out {
		t.Errorf("left for those who log in: %q, %v", text, err)
	}
	var r changes.Report
	if err := json.Unmarshal([]byte(b.says([]string{"--json"})), &r); err != nil || len(r.LeftOut) != 3 || r.LeftOut[1] != (changes.LeftOut{Path: "/etc/lost", Reason: "left out: because", Since: 3}) {
		t.Errorf("%+v, %v", r, err)
	}
	if code, _, errs := b.run("--take-theirs", "/etc/lost"); code != command.Failed || !strings.Contains(errs, "is not among the conflicts") {
		t.Errorf("%d, %q", code, errs)
	}
	b.says([]string{"--keep", "/var/lib/x\x1b[2J"})
	b.says([]string{"--summary"}, "\n2 files were left out by an update")
	b.says([]string{"--take-theirs", "--all-conflicts"}, "/etc/clash: the image's again\n")
	b.says([]string{"--summary"}, "1 file was left out by an update") // /etc/clash is the image's
	b.says([]string{"--keep", "--all-conflicts"}, "/etc/lost: this machine's stays\n")
	if out := b.says([]string{"--summary"}); out != "" {
		t.Errorf("still %q", out)
	}
}
