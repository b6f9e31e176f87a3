package version_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/version"
)

// A tree is a source tree with the script that names its version.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T, dir string) tree {
	t.Helper()
	script, err := os.ReadFile("describe")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_SYSTEM", "/dev/null")
	t.Setenv("HALOGEN_VERSION", "")
	place := filepath.Join(dir, "boot", "version")
	if err := os.MkdirAll(place, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place, "describe"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	return tree{t, dir}
}

// git runs git as somebody at noon of a day, in a time zone far from UTC.
func (tr tree) git(args ...string) string {
	tr.t.Helper()
	c := exec.Command(testkit.Need(tr.t, "git"), args...)
	c.Dir = tr.dir
	c.Env = append(os.Environ(), "TZ=Pacific/Kiritimati", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a",
		"GIT_COMMITTER_EMAIL=a@example.org", "GIT_COMMITTER_DATE=2026-11-28T23:30:00Z")
	out, err := c.CombinedOutput()
	if err != nil {
		tr.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (tr tree) commit() string {
	tr.t.Helper()
	tr.git("add", ".")
	tr.git("commit", "--quiet", "--allow-empty", "--message=x")
	return tr.git("rev-parse", "HEAD")[:12]
}

func (tr tree) describe(env ...string) (string, error) {
	c := exec.Command(filepath.Join(tr.dir, "boot", "version", "describe"))
	c.Env = append(os.Environ(), env...)
	out, err := c.Output()
	return strings.TrimSuffix(string(out), "\n"), err
}

func (tr tree) want(want string) {
	tr.t.Helper()
	if have, err := tr.describe(); err != nil || have != want {
		tr.t.Errorf("version %q, %v; want %q", have, err, want)
	}
}

func (tr tree) write(name, text string) {
	tr.t.Helper()
	if err := os.WriteFile(filepath.Join(tr.dir, name), []byte(text), 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

func TestDescribe(t *testing.T) {
	tr := newTree(t, t.TempDir())
	tr.git("init", "--quiet")
	first := tr.commit()
	tr.want("0+20261128233000." + first)
	// A tag on the commit is the version.
	tr.git("tag", "v1.2.0")
	tr.want("1.2.0")
	// What is not committed is said, whether git knows the file or not.
	tr.write("new.go", "package new\n")
	tr.want("1.2.0+20261128233000." + first + ".dirty")
	// The number of commits since the tag is not in it: a clone may have fewer.
	tr.commit()
	third := tr.commit()
	tr.want("1.2.0+20261128233000." + third)
	tr.write("new.go", "package other\n")
	tr.want("1.2.0+20261128233000." + third + ".dirty")
	tr.git("checkout", "--quiet", "new.go")
	// Tags that name no version are passed over: they would reach a shell.
	tr.git("tag", "nightly")
	tr.want("1.2.0+20261128233000." + third)
	tr.git("tag", "v9$(id)")
	tr.want("0+20261128233000." + third)
	tr.git("tag", "--delete", "v9$(id)")
	tr.git("tag", "--annotate", "--message=x", "v2.0-rc1")
	tr.want("2.0-rc1")
	tr.git("tag", "--delete", "v2.0-rc1")
	tr.git("tag", "v"+strings.Repeat("1", 60))
	tr.want(strings.Repeat("1", 60))
	fourth := tr.commit()
	tr.want("0+20261128233000." + fourth)
}

// A tree without git, or in somebody else's repository, is of no known version.
func TestDescribeWithoutGit(t *testing.T) {
	outer := newTree(t, t.TempDir())
	outer.want(version.Unknown)
	outer.git("init", "--quiet")
	outer.want(version.Unknown) // no commit yet
	outer.commit()
	inner := newTree(t, filepath.Join(outer.dir, "vendor", "halogen"))
	inner.want(version.Unknown)
	if have, err := outer.describe("PATH=" + withoutGit(t)); err != nil || have != version.Unknown {
		t.Errorf("without git: %q, %v", have, err)
	}
}

// withoutGit returns a directory that has what the script calls, but for git.
func withoutGit(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, tool := range []string{"bash", "dirname"} {
		if err := os.Symlink(testkit.Need(t, tool), filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDescribeGiven(t *testing.T) {
	tr := newTree(t, t.TempDir())
	for _, given := range []string{"1.2.3", "0", "1.0~rc1+b-2"} {
		if have, err := tr.describe("HALOGEN_VERSION=" + given); err != nil || have != given {
			t.Errorf("%q: %q, %v", given, have, err)
		}
	}
	for _, given := range []string{"v1", "1 2", "1$(id)", "1'", "1\n2", "-1", "ü", strings.Repeat("1", 65)} {
		if have, err := tr.describe("HALOGEN_VERSION=" + given); err == nil || have != "" {
			t.Errorf("%q was taken: %q", given, have)
		}
	}
}

// What no linker has stamped says so.
func TestUnknown(t *testing.T) {
	if version.String() != "unknown" || version.Line("halogen") != "halogen unknown\n" {
		t.Errorf("%q, %q", version.String(), version.Line("halogen"))
	}
}
