package upper

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
)

// listed is what a system's list in a directory says was left out, by whole paths.
func (d *disk) listed(entry string) (out []string) {
	d.t.Helper()
	text, err := os.ReadFile(filepath.Join(d.root, own(hash("b"), entry, "upper"), etcmerge.ListPath))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(d.t, err)
	list, err := etcmerge.ParseList(text)
	must(d.t, err)
	for _, l := range list.LeftOut {
		out = append(out, string(l.Path))
		if l.Reason == "" || l.Since != 2 {
			d.t.Errorf("listed is %+v", l)
		}
	}
	slices.Sort(out)
	return out
}

// What is left out is on the list of /etc, wherever it lies: the console is gone. Without
// an overlay for /etc it is on the first one's.
func TestCarryListsWhatIsLeftOut(t *testing.T) {
	for _, first := range []string{"etc", "usr-local"} {
		for _, conflicts := range []bool{true, false} {
			d := newDisk(t, Directory+"/"+hash("a"))
			before := filepath.Join(d.root, Directory, hash("a"))
			lay(t, d.image, map[string]string{"var/new": "=1"})
			if !conflicts {
				must(t, os.RemoveAll(filepath.Join(before, "usr-local/upper")))
				must(t, os.RemoveAll(filepath.Join(before, "etc/upper/both")))
			}
			lay(t, before, map[string]string{"opt/upper/tool": "=mine", "opt/upper/bad": "=mine"})
			c := d.carry(Source{System: hash("a")})
			if first != "etc" {
				c.Entries = slices.DeleteFunc(slices.Clone(conf), func(e stateconf.Entry) bool { return e.Path == "/etc" })
			}
			c.Step = func(what string) error {
				if what == "make added" || what == "make bad" || what == "rename new" {
					return syscall.EINVAL
				}
				return nil
			}
			report, err := d.store.Carry(t.Context(), c)
			must(t, err)
			off := "/" + own(hash("b"), "opt", "upper")
			want := []string{"/etc/added", "/" + own(hash("a"), "opt", "upper/bad"), off, "/var/new"}
			if first != "etc" {
				want[0] = "/" + own(hash("a"), "etc", "upper/added")
				want = append(want, "/"+own(hash("b"), "etc", "upper"))
			}
			slices.Sort(want)
			if got := d.listed(first); !slices.Equal(got, want) || len(report.LeftOut) != len(want) {
				t.Errorf("%s, conflicts %v: listed are %q, want %q; reported are %q", first, conflicts, got, want, report.LeftOut)
			}
			if first == "etc" {
				if got := d.listed("usr-local"); len(got) > 0 {
					t.Errorf("/usr/local lists %q, too", got)
				}
			}
		}
	}
}

// A machine that had nothing in /etc has the list all the same; one that has no room for
// it starts without.
func TestCarryListsOnNewMachine(t *testing.T) {
	for _, fails := range []string{"", "make changes.json", "make halogen"} {
		d := newDisk(t, "")
		lay(t, d.image, map[string]string{"var/new": "=1", "etc/halogen": "dir"})
		must(t, os.Chmod(filepath.Join(d.image, "etc/halogen"), 0o750))
		c := d.carry(Source{})
		c.Base = ""
		c.Step = func(what string) error {
			if what == "rename new" || what == fails {
				return syscall.EINVAL
			}
			return nil
		}
		report, err := d.store.Carry(t.Context(), c)
		must(t, err)
		if fails != "" {
			if len(report.LeftOut) != 2 || !strings.Contains(report.LeftOut[1], "changes.json") {
				t.Errorf("%s: left out are %q", fails, report.LeftOut)
			}
			continue
		}
		if got := d.listed("etc"); !slices.Equal(got, []string{"/var/new"}) {
			t.Errorf("listed are %q", got)
		}
		top := filepath.Join(d.root, own(hash("b"), "etc", "upper"), "halogen")
		if info, err := os.Stat(top); err != nil || info.Mode().Perm() != 0o750 {
			t.Errorf("its directory is %v, %v", info, err)
		}
		if info, err := os.Stat(filepath.Join(top, "changes.json")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the list is %v, %v", info, err)
		}
	}
}
