package ownstate

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/upper"
)

// What the running system has put in the place of the directory that it shares with the boot,
// or of that of the snapshots, keeps no reset from its end.
func TestDeleteAllButHomeBesideALink(t *testing.T) {
	for how, put := range map[string]func(name string) error{
		"link": func(name string) error { return os.Symlink("/nowhere", name) },
		"file": func(name string) error { return os.WriteFile(name, nil, 0o600) },
	} {
		root, said := t.TempDir(), new(bytes.Buffer)
		for _, name := range []string{"bind/home/me", "bind/var/x", rootpart.OwnDirectory} {
			if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{rootpart.Shared, snapshot.Directory} {
			if err := put(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
		h := new(host.Host)
		h.Machine = hw.Machine{Store: hw.LinuxStore{Root: root}, Log: hw.NewLog(said, io.Discard), Now: time.Now}
		h.Contract = &contract.Contract{RootFileSystem: "btrfs"}
		h.Journal = bootjournal.Journal{Machine: h.Machine, Root: root, Ready: func() bool { return false }}
		if err := DeleteAllButHome(h); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if _, err := os.Stat(filepath.Join(root, "bind/home/me")); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		for _, name := range []string{"bind/var", snapshot.Directory} {
			if _, err := os.Lstat(filepath.Join(root, name)); !os.IsNotExist(err) {
				t.Errorf("%s: %s is there: %v", how, name, err)
			}
		}
	}
}

// Whom root of before has given a directory of ours, or a program with root's rights, has
// neither afterwards, and what was put in a directory's place keeps no reset from its end.
func TestDeleteAllButHomeLeavesNothingArmed(t *testing.T) {
	testkit.Root(t, "it gives files to others")
	root, said := t.TempDir(), new(bytes.Buffer)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bind/home/me", rootpart.Shared + "/fetch"} {
		must(os.MkdirAll(filepath.Join(root, name), 0o755))
	}
	programs := []string{rootpart.OwnDirectory + "/sh", recoverykey.NoteFile, "bind/home/me/sh"}
	for _, name := range programs {
		must(os.WriteFile(filepath.Join(root, name), []byte("#!"), 0o755))
		must(os.Chown(filepath.Join(root, name), 0, 1000))
		must(unix.Chmod(filepath.Join(root, name), 0o6777))
	}
	for name := range keephome.Modes {
		must(os.Chown(filepath.Join(root, name), 1000, 1000))
		must(unix.Chmod(filepath.Join(root, name), 0o777))
	}
	must(os.Symlink("/etc", filepath.Join(root, upper.Bind, keephome.Home+"-x")))
	for i := range 3 * mostLeft {
		must(os.Mkdir(filepath.Join(root, upper.Bind, fmt.Sprintf("%s-%d", keephome.Home, i)), 0o700))
	}
	h := new(host.Host)
	h.Machine = hw.Machine{Store: hw.LinuxStore{Root: root}, Log: hw.NewLog(said, io.Discard), Now: time.Now}
	h.Contract = &contract.Contract{RootFileSystem: "ext4"}
	h.Journal = bootjournal.Journal{Machine: h.Machine, Root: root, Ready: func() bool { return false }}
	must(DeleteAllButHome(h))
	for name, want := range keephome.Modes {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, name), &st); err != nil || st.Uid != 0 || st.Gid != 0 || st.Mode&0o7777 != uint32(want) {
			t.Errorf("%s is %o of %d:%d, %v", name, st.Mode, st.Uid, st.Gid, err)
		}
	}
	for _, name := range programs {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, name), &st); err != nil || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			t.Errorf("%s is %o, %v", name, st.Mode, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, recoverykey.NoteFile), &st); err != nil || st.Mode&0o7777 != 0o600 || st.Gid != 0 {
		t.Errorf("the note of the recovery key is %o of %d, %v", st.Mode, st.Gid, err)
	}
	if _, err := os.Lstat(filepath.Join(root, upper.Bind, keephome.Home+"-x")); !os.IsNotExist(err) {
		t.Errorf("the link in a home's place is there: %v", err)
	}
	if n := strings.Count(said.String(), "WARNING"); n > mostLeft+1 {
		t.Errorf("%d warnings", n)
	}
}

// A user or a group that the image's systemd makes at a start counts as one of the image's.
func TestSysusers(t *testing.T) {
	h, root := new(host.Host), t.TempDir()
	h.Root = root
	dir := filepath.Join(root, host.SystemDirectory, "usr/lib/sysusers.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "halogen.conf"), []byte("# comment\nu _ota - \"HalogenOS update worker\" /\nu! \"_other\" 990\nu user 1000:1000 - /home/user /bin/bash\ng render - -\nu\nm user \"dialout\"\nm user\ng users 1100\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	people := map[string][]byte{
		"group":  []byte("render:x:1007:\nuser:x:1000:\ndialout:x:1008:\nusers:x:1009:\n"),
		"passwd": []byte("dialout:x:1008:1008::/home/d:/bin/sh\nusers:x:1009:1009::/home/u:/bin/sh\n_ota:x:1005:1005::/home/x:/bin/sh\n_other:x:1006:1006::/home/y:/bin/sh\nrender:x:1007:1007::/home/z:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
	}
	image := map[string][]byte{"passwd": []byte("root:x:0:0::/root:/bin/sh")}
	addSysusers(h, image)
	_, left := etcmerge.PeopleOf(etcmerge.WithoutServices(people, image))
	if got := fmt.Sprint(left); got != "[{dialout 1008 [dialout-1008]} {users 1009 []} {render 1007 [render-1007]} {user 1000 []}]" {
		t.Errorf("people %s", got)
	}
}
