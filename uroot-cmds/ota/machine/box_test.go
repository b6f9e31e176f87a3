package machine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// TestMain lets the tests start themselves as a worker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == worker.Argument {
		os.Exit(worker.Main(os.Stdin, os.Stdout))
	}
	code := m.Run()
	if line.key != nil && line.sum() != line.was {
		fmt.Fprintln(os.Stderr, "a test has changed the bytes of a release that other tests have, too")
		code = 1
	}
	os.Exit(code)
}

const diskSize = 4 << 30

// A box is a machine in a directory: its disk's partitions are plain files.
type box struct {
	t   testing.TB
	dir string
	m   *Machine
	// log has what was done to the disk, in order.
	mu      sync.Mutex
	log     []string
	corrupt bool
	waiting changes.Waiting
	offline bool
	around  when.Conditions
	noImage error // why the recovery console cannot open the system image
	mounted int
	atESP   func()
	// cut fails what comes after so many effects; negative: nothing.
	cut int
}

var errCut = errors.New("the power is cut")

// effect notes what is done, or fails it.
func (b *box) effect(what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut == 0 {
		return errCut
	}
	b.cut--
	b.log = append(b.log, what)
	return nil
}

func newBox(t testing.TB) *box {
	t.Helper()
	dir := t.TempDir()
	// The worker has other rights and must be able to reach its directory.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	b := &box{t: t, dir: dir, cut: -1, around: when.Conditions{Battery: -1}}
	for _, directory := range []string{"run/halogen", stateDirectory, "etc", "esp/" + bls.Directory, "parts"} {
		must(t, os.MkdirAll(filepath.Join(dir, directory), 0o755))
	}
	b.write("etc/machine-id", []byte("0123456789abcdef\n"))
	first := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: 512, Sectors: diskSize / 512, Partitions: []gpt.Partition{
		{Number: 1, Type: layout.TypeESP, UUID: gpt.GUID{2}, First: 2048, Last: 2048 + layout.ESPSize/512 - 1, Label: layout.ESPLabel},
		{Number: 2, Type: layout.TypeRoot, UUID: gpt.GUID{3}, First: 2 << 20, Last: 2<<20 + otatest.SlotSize/512 - 1, Label: layout.SlotA.SystemLabel()},
	}}
	plan, err := layout.NewPlan(first, otatest.SlotSize, rand.Reader)
	must(t, err)
	b.writeTable(plan.Table)
	for _, p := range plan.Table.Partitions {
		f, err := os.Create(b.part(layout.RoleOf(p)))
		must(t, err)
		_, size := plan.Table.Bytes(p)
		must(t, errors.Join(f.Truncate(size), f.Close()))
	}
	var user *syscall.Credential
	if os.Getuid() == 0 {
		user = &syscall.Credential{Uid: workerNumber, Gid: workerNumber, Groups: []uint32{}}
	}
	b.m = &Machine{
		Hardware: hw.Machine{Disks: disks{b}, Firmware: firmware{}, ESP: boxESP{b}}, Root: dir,
		Worker: worker.Starter{Program: "/proc/self/exe", User: user},
		Random: rand.Reader, Now: func() time.Time { return otatest.Date.Add(time.Hour) },
		Corrupt:    func() (bool, error) { return b.corrupt, nil },
		Waiting:    func() (changes.Waiting, error) { return b.waiting, nil },
		OpenSystem: func() (string, error) { return b.path("sysroot"), b.noImage },
		Waits: Waits{
			Online:    func() bool { return !b.offline },
			LookEvery: 10 * time.Millisecond,
			Surroundings: func(context.Context) when.Conditions {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.around
			},
		},
	}
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *box) part(r layout.Role) string {
	return filepath.Join(b.dir, "parts", r.String())
}

func (b *box) path(name string) string { return filepath.Join(b.dir, name) }

func (b *box) write(name string, content []byte) {
	b.t.Helper()
	must(b.t, os.MkdirAll(filepath.Dir(b.path(name)), 0o755))
	must(b.t, os.WriteFile(b.path(name), content, 0o644))
}

func (b *box) read(name string) string {
	text, err := os.ReadFile(b.path(name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (b *box) writeTable(table *gpt.Table) {
	b.t.Helper()
	f, err := os.OpenFile(filepath.Join(b.dir, "disk"), os.O_RDWR|os.O_CREATE, 0o600)
	must(b.t, err)
	must(b.t, errors.Join(f.Truncate(diskSize), table.Write(f), f.Close()))
}

func (b *box) table() *gpt.Table {
	b.t.Helper()
	f, err := os.Open(filepath.Join(b.dir, "disk"))
	must(b.t, err)
	defer f.Close()
	table, _, err := gpt.Read(f, diskSize/512, 512)
	must(b.t, err)
	return table
}

// install puts a release into a slot, and its UKI on the ESP.
func (b *box) install(s layout.Slot, r *otatest.Release, name string) {
	b.t.Helper()
	system, err := os.OpenFile(b.part(s.System()), os.O_RDWR, 0)
	must(b.t, err)
	defer system.Close()
	tree, err := os.OpenFile(b.part(s.Verity()), os.O_RDWR, 0)
	must(b.t, err)
	defer tree.Close()
	_, err = system.WriteAt(r.Image, 0)
	must(b.t, err)
	root, err := verity.Generate(b.t.Context(), system, r.Contract.VerityParams(), tree, nil)
	must(b.t, err)
	b.writeTable(layout.Rename(b.table(), s, layout.SystemUUID(root), layout.VerityUUID(root)))
	b.write(filepath.Join("esp", bls.Directory, name), r.UKI)
}

// boot makes a release the running one.
func (b *box) boot(s layout.Slot, r *otatest.Release) {
	b.t.Helper()
	text, err := json.Marshal(bootinfo.Report{Slot: s, Contract: r.Contract})
	must(b.t, err)
	b.write(reportFile, text)
}

// ukis lists the ESP.
func (b *box) ukis() string {
	entries, err := os.ReadDir(filepath.Join(b.dir, "esp", bls.Directory))
	must(b.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// kinds are the journal's.
func (b *box) kinds() string {
	entries, err := bootinfo.ReadJournal(filepath.Join(b.dir, stateDirectory))
	must(b.t, err)
	var out []string
	for _, e := range entries {
		out = append(out, string(e.Kind)+" "+e.Version.String())
	}
	return strings.Join(out, ", ")
}

func (b *box) journal(entries ...journal.Entry) {
	b.t.Helper()
	must(b.t, bootinfo.AppendJournal(filepath.Join(b.dir, stateDirectory), entries...))
}

type disks struct{ b *box }

func (d disks) disk() hw.Disk {
	return hw.Disk{Name: "disk0", SectorSize: 512, Sectors: diskSize / 512}
}

func (d disks) List() ([]hw.Disk, error) { return []hw.Disk{d.disk()}, nil }

func (d disks) Open(_ hw.Disk, write bool) (hw.File, error) {
	if write {
		if err := d.b.effect("partition table"); err != nil {
			return nil, err
		}
		return os.OpenFile(d.b.path("disk"), os.O_RDWR, 0)
	}
	return os.Open(d.b.path("disk"))
}

func (d disks) OpenPartition(_ hw.Disk, r layout.Role, write bool) (hw.File, error) {
	if write {
		if err := d.b.effect("open " + r.String()); err != nil {
			return nil, err
		}
		return os.OpenFile(d.b.part(r), os.O_RDWR, 0)
	}
	return os.Open(d.b.part(r))
}

func (d disks) PartitionPath(_ hw.Disk, r layout.Role) (string, error) { return d.b.part(r), nil }
func (d disks) Reread(hw.Disk) error                                   { return errors.ErrUnsupported }

type firmware struct{}

func (firmware) LoaderString(string) (string, error)        { return "", nil }
func (firmware) Flag(string) (bool, error)                  { return false, nil }
func (firmware) BootedFrom() ([]bootoption.Function, error) { return nil, nil }

type boxESP struct{ b *box }

func (e boxESP) Read(_ hw.Disk, read func(fs.FS) error) error { return read(os.DirFS(e.b.path("esp"))) }

func (e boxESP) Write(_ hw.Disk, write func(hw.ESPDir) error) error {
	e.b.mounted++
	if e.b.atESP != nil {
		e.b.atESP()
	}
	return write(espDir{enroll.MountedDir{Root: e.b.path("esp")}, e.b})
}

func (boxESP) Repair(hw.Disk, []string) (int64, error) { return 0, errors.ErrUnsupported }
func (boxESP) Exchange(hw.Disk, string, string) error  { return errors.ErrUnsupported }

type espDir struct {
	enroll.MountedDir
	b *box
}

func (e espDir) Remove(name string) error {
	if err := e.b.effect("remove " + filepath.Base(name)); err != nil {
		return err
	}
	return e.MountedDir.Remove(name)
}

func (e espDir) Rename(from, to string) error {
	if err := e.b.effect("rename " + filepath.Base(from) + " to " + filepath.Base(to)); err != nil {
		return err
	}
	return e.MountedDir.Rename(from, to)
}

// A world has a machine that runs version 2 in slot A, with version 1 in slot B,
// and a server that offers version 3.
type world struct {
	*box
	key              *otatest.Key
	one, two, three  *otatest.Release
	site             *otatest.Site
	server           *httptest.Server
	mu               sync.Mutex
	onArchive        func(w http.ResponseWriter, r *http.Request) http.ResponseWriter
	archiveRequested []string
	noRanges         bool // the server sends no parts of files
}

const blocks = 2000

// line has the key and the releases that each world begins with. They are made once, since
// packing them takes longer than most tests.
var line releaseLine

type releaseLine struct {
	sync.Mutex
	key  *otatest.Key
	made [3]*otatest.Release
	was  [sha256.Size]byte // the sum of their bytes, when they were made
}

// of returns them to a test, which may change what the contracts say.
func (l *releaseLine) of(t testing.TB) (key *otatest.Key, one, two, three *otatest.Release) {
	t.Helper()
	l.Lock()
	defer l.Unlock()
	if l.key == nil {
		key := otatest.NewKey(t)
		for i, image := range [][]byte{otatest.Image(50, 9, 0, 0), otatest.Image(blocks, 1, 0, 0), otatest.Image(blocks, 1, 12, 2)} {
			l.made[i] = otatest.Make(t, otatest.Spec{Version: contract.Version(i + 1), Key: key, Image: image})
		}
		l.key, l.was = key, l.sum()
	}
	own := func(r *otatest.Release) *otatest.Release {
		out, c := *r, *r.Contract
		out.Contract = &c
		return &out
	}
	return l.key.For(t), own(l.made[0]), own(l.made[1]), own(l.made[2])
}

func (l *releaseLine) sum() (out [sha256.Size]byte) {
	h := sha256.New()
	for _, r := range l.made {
		for _, part := range [][]byte{r.UKI, r.Image, r.Archive, r.Text, r.Head.Signature, r.Contract.RootHash, r.Contract.ReleaseKey} {
			h.Write(part)
		}
	}
	h.Sum(out[:0])
	return out
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{box: newBox(t)}
	w.key, w.one, w.two, w.three = line.of(t)
	w.install(layout.SlotA, w.two, "test-os_2.efi")
	w.install(layout.SlotB, w.one, "test-os_1.efi")
	w.boot(layout.SlotA, w.two)
	w.site = otatest.NewSite(w.key)
	w.site.Publish(w.three, nil)
	files := http.FileServerFS(w.site.Files)
	w.server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		hook := w.onArchive
		if strings.HasSuffix(r.URL.Path, ".tar.gz") {
			w.archiveRequested = append(w.archiveRequested, r.Header.Get("Range"))
		} else {
			hook = nil
		}
		if w.noRanges {
			r.Header.Del("Range")
		}
		w.mu.Unlock()
		if hook != nil {
			out = hook(out, r)
		}
		files.ServeHTTP(out, r)
	}))
	t.Cleanup(w.server.Close)
	w.write("etc/halogen/ota.conf", []byte("Server="+w.server.URL+"\n"))
	return w
}

func (w *world) fetch() (*Outcome, error) {
	return w.m.Fetch(context.Background(), Options{Tell: func(e worker.Event) {
		if e.Note != "" {
			w.t.Log(e.Note)
		}
	}})
}

// complete checks that version 3 is in slot B, whole.
func (w *world) complete() {
	w.t.Helper()
	system, err := os.Open(w.part(layout.SystemB))
	must(w.t, err)
	defer system.Close()
	tree, err := os.Open(w.part(layout.VerityB))
	must(w.t, err)
	defer tree.Close()
	if err := verity.Verify(w.t.Context(), system, tree, w.three.Contract.VerityParams(), w.three.Contract.Root(), nil); err != nil {
		w.t.Error(err)
	}
	directory := filepath.Join(stateDirectory, "fetch/3")
	for name, want := range map[string][]byte{release.FileName: w.three.Text, archive.SignatureFile: w.three.Head.Signature, release.UKIFile: w.three.UKI} {
		if got := w.read(filepath.Join(directory, name)); got != string(want) {
			w.t.Errorf("%s differs (%d bytes)", name, len(got))
		}
	}
	entries, err := os.ReadDir(w.path(directory))
	must(w.t, err)
	if len(entries) != 4 {
		w.t.Errorf("the directory has %v", entries)
	}
	for _, e := range entries {
		info, err := e.Info()
		must(w.t, err)
		if s := info.Sys().(*syscall.Stat_t); int(s.Uid) != os.Getuid() {
			w.t.Errorf("%s is the user %d's", e.Name(), s.Uid)
		}
	}
	if got := w.read(filepath.Join(stateDirectory, stagedFile)); strings.TrimSpace(got) != `{"format":1,"version":"3","slot":"b"}` {
		w.t.Errorf("staged.json is %s", got)
	}
}
