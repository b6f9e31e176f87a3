package esp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

// disk is an ESP whose k-th change, or flush, fails.
type disk struct {
	files  map[string][]byte
	free   int64
	fail   int // which one; 0: none
	err    error
	sticky bool // and all after it
	flips  bool // what is read is not what was written
	ops    []string
}

func newDisk(names ...string) *disk {
	d := &disk{files: map[string][]byte{}, free: 100 << 20}
	for _, name := range names {
		d.files[path.Join(bls.Directory, name)] = []byte(name)
	}
	return d
}

func (d *disk) op(name string) error {
	d.ops = append(d.ops, name)
	if d.fail != 0 && (len(d.ops) == d.fail || d.sticky && len(d.ops) > d.fail) {
		return fmt.Errorf("%s: %w", name, d.err)
	}
	return nil
}

func (d *disk) List(directory string) (out []enroll.FileInfo, err error) {
	for name, data := range d.files {
		if path.Dir(name) == directory {
			out = append(out, enroll.FileInfo{Name: path.Base(name), Size: int64(len(data))})
		}
	}
	if out == nil {
		return nil, fs.ErrNotExist
	}
	return out, nil
}

func (d *disk) Read(name string) ([]byte, error) {
	data, ok := d.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	data = bytes.Clone(data)
	if d.flips {
		data[0] ^= 1
	}
	return data, nil
}

func (d *disk) Create(name string, data []byte) error {
	if _, ok := d.files[name]; ok {
		return fs.ErrExist
	}
	err := d.op("create " + name)
	d.files[name] = bytes.Clone(data)
	if err != nil {
		d.files[name] = data[:len(data)/2]
	}
	return err
}

func (d *disk) Open(string) (enroll.File, error) { return nil, errors.ErrUnsupported }

func (d *disk) Remove(name string) error {
	if _, ok := d.files[name]; !ok {
		return fs.ErrNotExist
	}
	if err := d.op("remove " + name); err != nil {
		return err
	}
	delete(d.files, name)
	return nil
}

func (d *disk) SyncFile(name string) error     { return d.op("flush " + name) }
func (d *disk) SyncDir(directory string) error { return d.op("flush directory " + directory) }
func (d *disk) MakeDirectory(string) error     { return nil }
func (d *disk) FreeBytes() (int64, error)      { return d.free, nil }
func (d *disk) Rename(from, to string) error {
	if err := d.op("rename " + from + " " + path.Base(to)); err != nil {
		return err
	}
	if _, ok := d.files[from]; !ok {
		return fs.ErrNotExist
	}
	if _, ok := d.files[to]; ok {
		return fs.ErrExist
	}
	d.files[to] = d.files[from]
	delete(d.files, from)
	return nil
}

func (d *disk) names() (names []string) {
	for name := range d.files {
		names = append(names, path.Base(name))
	}
	slices.Sort(names)
	return names
}

func name(t *testing.T, s string) bls.Name {
	t.Helper()
	n, err := bls.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestList(t *testing.T) {
	d := newDisk("os_1.efi", "os_2+0-3.efi", "os_3+2-1.efi", "notes.txt", "os_4+3.efi.part", "OS_5.EFI")
	d.files["EFI/BOOT/os_9.efi"] = nil
	files, err := List(d)
	var got []string
	for _, f := range files {
		got = append(got, fmt.Sprintf("%s %d", f.Name, f.Size))
	}
	if want := []string{"os_3+2-1.efi 12", "os_1.efi 8", "os_2+0-3.efi 12"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if files, err := List(newDisk()); err != nil || len(files) != 0 {
		t.Errorf("an ESP without the directory: %v, %v", files, err)
	}
}

// FAULTS 44, 45, 46
func TestRenames(t *testing.T) {
	bless, condemn := Bless, Condemn
	retry := func(dir hw.ESPDir, n bls.Name) error {
		fresh, err := Retry(dir, n, 3)
		if err == nil && fresh.String() != "os_2+3.efi" {
			return fmt.Errorf("it is called %s", fresh)
		}
		return err
	}
	for _, c := range []struct {
		what  string
		names []string
		of    string
		want  []string
		fails error
	}{
		{"bless", []string{"os_1.efi", "os_2+1-2.efi"}, "os_2+1-2.efi", []string{"os_1.efi", "os_2.efi"}, nil},
		{"bless", []string{"os_1.efi"}, "os_1.efi", []string{"os_1.efi"}, nil},
		{"bless", []string{"os_2+0-3.efi"}, "os_2+0-3.efi", []string{"os_2.efi"}, nil},
		{"bless", []string{"os_2.efi", "os_2+1-2.efi"}, "os_2+1-2.efi", []string{"os_2+1-2.efi", "os_2.efi"}, fs.ErrExist},
		{"bless", []string{"os_1.efi"}, "os_2+1-2.efi", []string{"os_1.efi"}, fs.ErrNotExist},
		{"condemn", []string{"os_1.efi", "os_2+1-2.efi"}, "os_2+1-2.efi", []string{"os_1.efi", "os_2+0-2.efi"}, nil},
		{"condemn", []string{"os_1.efi"}, "os_1.efi", []string{"os_1+0.efi"}, nil},
		{"condemn", []string{"os_1+0-9.efi"}, "os_1+0-9.efi", []string{"os_1+0-9.efi"}, nil},
		{"condemn", []string{"os_1+0.efi", "os_1+0-1.efi", "os_1.efi"}, "os_1.efi", []string{"os_1+0-1.efi", "os_1+0-2.efi", "os_1+0.efi"}, nil},
		{"retry", []string{"os_1.efi", "os_2+0-3.efi"}, "os_2+0-3.efi", []string{"os_1.efi", "os_2+3.efi"}, nil},
		{"retry", []string{"os_2+0-3.efi", "os_2+3.efi"}, "os_2+0-3.efi", []string{"os_2+0-3.efi", "os_2+3.efi"}, fs.ErrExist},
	} {
		d := newDisk(c.names...)
		var err error
		switch c.what {
		case "bless":
			err = bless(d, name(t, c.of))
		case "condemn":
			err = condemn(d, name(t, c.of))
		default:
			err = retry(d, name(t, c.of))
		}
		if !errors.Is(err, c.fails) || !slices.Equal(d.names(), c.want) {
			t.Errorf("%s %s of %q: %q, %v", c.what, c.of, c.names, d.names(), err)
		}
	}
	for _, n := range []string{"os_2.efi", "os_2+1-2.efi"} { // tries never rise but from none
		if _, err := Retry(newDisk(n), name(t, n), 3); err == nil {
			t.Errorf("%s gets its tries again", n)
		}
	}
}

func TestPut(t *testing.T) {
	d := newDisk("os_1.efi", "os_2+3.efi.part")
	data := bytes.Repeat([]byte("UKI"), 1000)
	if err := Put(d, name(t, "os_2+3.efi"), data); err != nil {
		t.Fatal(err)
	}
	if want := []string{"os_1.efi", "os_2+3.efi"}; !slices.Equal(d.names(), want) || !bytes.Equal(d.files["EFI/Linux/os_2+3.efi"], data) {
		t.Errorf("%q, want %q", d.names(), want)
	}
	want := []string{
		"remove EFI/Linux/os_2+3.efi.part", "flush directory EFI/Linux",
		"create EFI/Linux/os_2+3.efi.part", "flush EFI/Linux/os_2+3.efi.part", "flush directory EFI/Linux",
		"rename EFI/Linux/os_2+3.efi.part os_2+3.efi",
	}
	if !slices.Equal(d.ops, want) {
		t.Errorf("did %q, want %q", d.ops, want)
	}
	for _, n := range []string{"os_2+3.efi", "os_2.efi", "os_1+3.efi"} { // two files of one version
		if err := Put(d, name(t, n), data); err == nil {
			t.Errorf("%s is written beside %q", n, d.names())
		}
	}
}

// Whatever fails while a UKI is written, what was there stays, and what was
// written goes, as far as anything can go. FAULTS 47, 82
func TestPutFails(t *testing.T) {
	data := bytes.Repeat([]byte("UKI"), 1000)
	put := func(d *disk) error { return Put(d, name(t, "os_2+3.efi"), data) }
	whole := newDisk("os_1.efi", "os_2+3.efi.part")
	if err := put(whole); err != nil {
		t.Fatal(err)
	}
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS} {
		for k := 1; k <= len(whole.ops); k++ {
			for _, sticky := range []bool{false, true} {
				d := newDisk("os_1.efi", "os_2+3.efi.part")
				before := maps.Clone(d.files)
				d.fail, d.err, d.sticky = k, cause, sticky
				if err := put(d); !errors.Is(err, cause) {
					t.Errorf("%v at operation %d: %v", cause, k, err)
				}
				if !bytes.Equal(d.files["EFI/Linux/os_1.efi"], before["EFI/Linux/os_1.efi"]) {
					t.Errorf("%v at operation %d: what was there is not", cause, k)
				}
				if names := d.names(); slices.Contains(names, "os_2+3.efi") || !sticky && k > 2 && len(names) != 1 {
					t.Errorf("%v at operation %d leaves %q", cause, k, names)
				}
			}
		}
	}
	d := newDisk("os_1.efi")
	d.free = int64(len(data)) + slack - 1
	if err := put(d); !errors.Is(err, ErrNoRoom) || len(d.ops) > 0 {
		t.Errorf("no room: %v, and it did %q", err, d.ops)
	}
	d.free++
	d.flips = true
	if err := put(d); err == nil || !strings.Contains(err.Error(), "read EFI/Linux/os_2+3.efi back: 3000 bytes with SHA-256") || len(d.names()) != 1 {
		t.Errorf("a disk that does not keep what it gets: %v, and %q", err, d.names())
	}
}

func TestRemove(t *testing.T) {
	d := newDisk("os_1.efi", "os_2.efi")
	for range 2 { // what is gone is fine
		if err := Remove(d, name(t, "os_1.efi")); err != nil || !slices.Equal(d.names(), []string{"os_2.efi"}) {
			t.Errorf("%v, left %q", err, d.names())
		}
	}
	if last := d.ops[len(d.ops)-1]; last != "flush directory EFI/Linux" {
		t.Errorf("the last it did: %s", last)
	}
}
