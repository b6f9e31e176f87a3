package qemutests

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/builder/vm"
)

// staleAfter is how long a provisioned machine is kept that nobody uses.
const staleAfter = 3 * 24 * time.Hour

// Provisioned is a machine that was brought into a state once, for several tests to
// clone. It is off.
type Provisioned struct {
	State vm.State
	Notes map[string]string // what bring returned: a recovery key that was shown once, ...
}

// failures remembers which machines could not be brought into their state, so that
// the tests that share one fail at once and not each after its own minutes. It lives
// as long as the test process, which is the point.
var failures sync.Map // key: name of the test that tried

// Provision returns the machine that bring makes of the image in o, a machine that
// was never switched on. kind names the state; bring runs only when no machine of
// that kind was made of this very image before, by this process or an earlier one.
// bring may leave the machine on; it is then cut off.
func Provision(t testing.TB, o Options, kind string, bring func(g *Guest) map[string]string) Provisioned {
	t.Helper()
	return provisionOf(t, o, kind, func(g *Guest) (map[string]string, error) { return bring(g), nil })
}

// errTooLate is bring's, for a machine that has passed the state in which it was to be
// kept: another one is tried.
var errTooLate = errors.New("the machine was stopped too late")

// maxTries bounds the machines that are stopped too late.
const maxTries = 6

func provisionOf(t testing.TB, o Options, kind string, bring func(g *Guest) (map[string]string, error)) Provisioned {
	t.Helper()
	Need(t)
	key, err := provisionKey(Image(t, o.Image), kind, o)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(OutDir(t), "provisioned")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, key)
	lock, err := tryLock(dir+".lock", 0) // waits for another test that is at it
	if err != nil {
		t.Fatalf("lock %s: %v", dir, err)
	}
	defer lock.Close()
	// After the lock: those who wait for the machine leave the slots to others. Nobody has a
	// slot and waits for the lock: a test provisions first, and then starts machines.
	if p, err := loadProvisioned(dir); err == nil {
		return p
	}
	if by, failed := failures.Load(key); failed {
		t.Fatalf("%s %s: provisioning it has failed in %s", o.Image, kind, by)
	}
	failures.Store(key, t.Name())
	defer borrowSlot(t, firstOfAll)()
	began := time.Now()
	removeStale(base, began)
	g, notes := brought(t, o, kind, bring)
	p, err := saveProvisioned(dir, g.state, notes)
	if err != nil {
		t.Fatal(err)
	}
	failures.Delete(key)
	t.Logf("%s %s: provisioned in %v", o.Image, kind, time.Since(began).Round(time.Second))
	return p
}

// brought starts machines until one comes into the state, and switches that off.
func brought(t testing.TB, o Options, kind string, bring func(g *Guest) (map[string]string, error)) (*Guest, map[string]string) {
	t.Helper()
	for try := 1; ; try++ {
		g := Machine(t, o)
		g.name += ", which made the machine " + o.Image + " " + kind
		notes, err := bring(g)
		g.Close()
		switch {
		case err == nil:
			return g, notes
		case try == maxTries || !errors.Is(err, errTooLate):
			t.Fatalf("%s %s, try %d: %v", o.Image, kind, try, err)
		}
		t.Logf("%s %s, try %d: %v", o.Image, kind, try, err)
	}
}

// atInit is a provisioned machine of an image, by the name of its kind, that stands where
// its kernel starts initagent. Of its disk only the partition table and the ESP were
// read. It is for tests of what comes then that change nothing of those, nor the firmware's
// variables, nor the TPM; other tests start each kind from power on.
func atInit(t testing.TB, image, kind string, p Provisioned) Provisioned {
	t.Helper()
	return suspendedAtInit(t, Options{Image: image, State: p.State}, kind, p.Notes)
}

// suspendedAtInit is atInit of a machine with options of its own.
func suspendedAtInit(t testing.TB, o Options, kind string, notes map[string]string) Provisioned {
	t.Helper()
	return provisionOf(t, o, kind+", at init", func(g *Guest) (map[string]string, error) {
		g.Expect(`Run /init as init process`)
		g.suspend()
		// Where others have the processors, what stops the machine gets one too late.
		if strings.Contains(g.Console().Text(), "] virtio_blk") {
			return nil, fmt.Errorf("%w: the kernel has a driver of the disk", errTooLate)
		}
		return notes, nil
	})
}

const notesFile = "notes.json"

// saveProvisioned writes under another name first, so that a directory with the final
// name is whole.
func saveProvisioned(dir string, from vm.State, notes map[string]string) (Provisioned, error) {
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return Provisioned{}, err
	}
	if _, err := from.Clone(fresh); err != nil {
		return Provisioned{}, err
	}
	b, err := json.Marshal(notes)
	if err != nil {
		return Provisioned{}, err
	}
	if err := os.WriteFile(filepath.Join(fresh, notesFile), b, 0o600); err != nil {
		return Provisioned{}, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return Provisioned{}, err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return Provisioned{}, err
	}
	return loadProvisioned(dir)
}

// loadProvisioned finds a machine made earlier, and marks it as used.
func loadProvisioned(dir string) (Provisioned, error) {
	b, err := os.ReadFile(filepath.Join(dir, notesFile))
	if err != nil {
		return Provisioned{}, err
	}
	p := Provisioned{State: vm.State{Dir: dir}}
	if err := json.Unmarshal(b, &p.Notes); err != nil {
		return Provisioned{}, fmt.Errorf("%s of %s: %w", notesFile, dir, err)
	}
	now := time.Now()
	return p, os.Chtimes(dir, now, now)
}

// removeStale removes machines that nobody has used for long.
func removeStale(base string, now time.Time) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return // nothing to remove
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && now.Sub(info.ModTime()) > staleAfter {
			_ = os.RemoveAll(filepath.Join(base, e.Name())) // it only costs space
		}
	}
}

// provisionKey names everything that decides what provisioning comes to: the image's
// bytes, the kind, the firmware and the machine's make.
func provisionKey(image, kind string, options Options) (string, error) {
	fw, err := firmware(options)
	if err != nil {
		return "", err
	}
	o := withDefaults(options.VM)
	o.State, o.Firmware, o.WriteLog, o.Disks = vm.State{Dir: "/machine"}, fw, "", nil
	of, err := vm.Make(o)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %d %s\n", kind, o.Memory, of)
	for _, path := range []string{image, fw.Code, fw.Vars} {
		if err := hashSparse(h, path); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// hashSparse hashes the size of a file and those of its blocks that are not zero,
// with their places: copies that differ in their holes only have one hash.
func hashSparse(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("hash: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("hash: %w", err)
	}
	const block = 4096
	var place [8]byte
	var zero [block]byte
	buf := make([]byte, 1<<20)
	binary.LittleEndian.PutUint64(place[:], uint64(info.Size()))
	h.Write(place[:])
	return vm.DataExtents(f, info.Size(), func(off, length int64) error {
		end := off + length
		for at := off / block * block; at < end; at += int64(len(buf)) {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), info.Size()-at)], at)
			if err != nil && err != io.EOF {
				return fmt.Errorf("hash %s: %w", path, err)
			}
			for i := 0; i < n; i += block {
				part := buf[i:min(i+block, n)]
				if at+int64(i) >= end || string(part) == string(zero[:len(part)]) {
					continue
				}
				binary.LittleEndian.PutUint64(place[:], uint64(at)+uint64(i))
				h.Write(place[:])
				h.Write(part)
			}
		}
		return nil
	})
}
