package ownstate

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
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
