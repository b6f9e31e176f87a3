package blocktest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"syscall"
	"testing"

	. "halogenos.internal/boot/blocktest"
)

// states returns the content of every state, as one letter a sector.
func states(t *testing.T, r *Recorder, o Options) map[string]int {
	t.Helper()
	seen := map[string]int{}
	n, err := r.Cuts(o, func(c Cut) error {
		var s strings.Builder
		all := contents(t, c.Disk)
		for i := 0; i < len(all); i += 512 {
			s.WriteByte(all[i])
			if !bytes.Equal(all[i:i+512], bytes.Repeat(all[i:i+1], 512)) {
				return errors.New("a sector is torn inside")
			}
		}
		seen[s.String()]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, k := range seen {
		total += k
	}
	if total != n {
		t.Errorf("%d states visited, %d reported", total, n)
	}
	return seen
}

func sectors(letters string) []byte {
	var b []byte
	for _, l := range letters {
		b = append(b, bytes.Repeat([]byte{byte(l)}, 512)...)
	}
	return b
}

func disk(t *testing.T, letters string) *Disk {
	d := New(int64(len(letters))*512, Hostile)
	write(t, d, 0, sectors(letters))
	return d
}

func wantExactly(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] != 1 {
			t.Errorf("state %s was visited %d times, want once", w, got[w])
		}
		delete(got, w)
	}
	for s, n := range got {
		t.Errorf("state %s was visited %d times and is impossible", s, n)
	}
}

func TestEverySubsetOfASmallEpoch(t *testing.T) {
	r := Record(disk(t, "...."))
	write(t, r, 512, sectors("b"))
	write(t, r, 0, sectors("a"))
	if err := r.Sync(); err != nil {
		t.Fatal(err)
	}
	write(t, r, 3*512, sectors("d"))
	wantExactly(t, states(t, r, Options{}), "....", "a...", ".b..", "ab..", "ab.d")
}

func TestTornWrites(t *testing.T) {
	r := Record(disk(t, "....."))
	write(t, r, 512, sectors("abc"))
	wantExactly(t, states(t, r, Options{}), ".....", ".abc.", ".a...", ".ab..", "..bc.", "...c.")

	// A write that does not start at a sector is torn where sectors are.
	base := New(2048, Zero)
	r = Record(base)
	write(t, r, 500, bytes.Repeat([]byte{1}, 24))
	n, err := r.Cuts(Options{}, func(c Cut) error {
		all := contents(t, c.Disk)
		if first := all[500]; !bytes.Equal(all[500:512], bytes.Repeat([]byte{first}, 12)) {
			return errors.New("torn inside the first sector")
		}
		if second := all[512]; !bytes.Equal(all[512:524], bytes.Repeat([]byte{second}, 12)) {
			return errors.New("torn inside the second sector")
		}
		return nil
	})
	if n != 4 || err != nil {
		t.Errorf("%d states, %v; want absent, whole and one sector of two", n, err)
	}
}

func TestNothingWritten(t *testing.T) {
	r := Record(disk(t, ".."))
	if err := r.Sync(); err != nil {
		t.Fatal(err)
	}
	wantExactly(t, states(t, r, Options{}), "..")
}

func TestRewriteInOneEpoch(t *testing.T) {
	r := Record(disk(t, "."))
	write(t, r, 0, sectors("a"))
	write(t, r, 0, sectors("b"))
	got := states(t, r, Options{})
	if got["."] != 1 || got["a"] != 1 || got["b"] != 2 || len(got) != 3 {
		t.Errorf("states %v", got)
	}
}

func TestFailedOperationsPromiseNothing(t *testing.T) {
	r := Record(disk(t, "...."))
	r.Inject(Fault{Write: 2, Sync: 1, Err: syscall.EIO})
	write(t, r, 0, sectors("a"))
	if _, err := r.WriteAt(sectors("bc"), 512); err == nil {
		t.Fatal("the write did not fail")
	}
	if err := r.Sync(); err == nil {
		t.Fatal("the sync did not fail")
	}
	write(t, r, 3*512, sectors("d"))
	wantExactly(t, states(t, r, Options{}),
		"....", "a...", ".b..", "ab..", "...d", "a..d", ".b.d", "ab.d")
}

func TestLargeEpoch(t *testing.T) {
	const n = 20
	r := Record(disk(t, strings.Repeat(".", 2*n)))
	letters := "abcdefghijklmnopqrst"
	for i := range n {
		write(t, r, int64(i*1024), sectors(strings.Repeat(letters[i:i+1], 2)))
	}
	o := Options{Exhaustive: 1000, Random: 50, Seed: 1}
	got := states(t, r, o)
	whole := ""
	for i := range n {
		l := strings.Repeat(letters[i:i+1], 2)
		dots := strings.Repeat(".", 2*n)
		rest := dots[:2*(n-1-i)]
		all := strings.Repeat(".", 0)
		for j := range n {
			all += strings.Repeat(letters[j:j+1], 2)
		}
		for name, state := range map[string]string{
			"prefix":            whole + l + rest,
			"prefix, torn":      whole + l[:1] + "." + rest,
			"alone":             dots[:2*i] + l + rest,
			"alone, torn":       dots[:2*i] + "." + l[:1] + rest,
			"missing":           all[:2*i] + ".." + all[2*i+2:],
			"all but torn":      all[:2*i] + l[:1] + "." + all[2*i+2:],
			"the one before it": whole[:max(0, 2*i-2)] + dots[:min(2, 2*i)] + l + rest,
		} {
			if got[state] == 0 {
				t.Errorf("write %d, %s: %s was not visited", i, name, state)
			}
		}
		whole += l
	}
	if len(got) < 6*n+40 {
		t.Errorf("only %d different states", len(got))
	}
	for s, k := range states(t, r, o) {
		if got[s] != k {
			t.Errorf("state %s: the same seed visits it %d times, then %d", s, got[s], k)
		}
	}
	o.Seed = 2
	fresh := 0
	for s := range states(t, r, o) {
		if got[s] == 0 {
			fresh++
		}
	}
	if fresh < 20 {
		t.Errorf("another seed visits only %d other states", fresh)
	}
}

func TestVisitorsErrorNamesTheState(t *testing.T) {
	r := Record(disk(t, "..."))
	write(t, r, 0, sectors("a"))
	write(t, r, 512, sectors("bc"))
	boom := errors.New("does not boot")
	n, err := r.Cuts(Options{}, func(c Cut) error {
		if all := contents(t, c.Disk); all[0] == '.' && all[1024] == 'c' && all[512] == '.' {
			return boom
		}
		return nil
	})
	want := "cut in epoch 1: op 0 (512 bytes at byte 0) absent, op 1 (1024 bytes at byte 512) torn to bytes 512 to 1024: does not boot"
	if !errors.Is(err, boom) || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	if n == 0 || n > 8 {
		t.Errorf("%d states up to the error", n)
	}
}

func TestKeptCutPanics(t *testing.T) {
	r := Record(disk(t, "."))
	var kept *Disk
	if _, err := r.Cuts(Options{}, func(c Cut) error { kept = c.Disk; return nil }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a state that is gone could be read")
		}
	}()
	contents(t, kept)
}

// The protocol for the mutants: two numbered, checksummed copies of a value
// that is spread over many sectors, the older one replaced each time.

const copySize = 64 << 10

func record(number uint32) []byte {
	b := bytes.Repeat([]byte{byte(number)}, copySize)
	binary.LittleEndian.PutUint32(b[4:], number)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
	return b
}

// newest returns the highest number among the good copies, and its place.
func newest(d interface {
	ReadAt([]byte, int64) (int, error)
}) (number uint32, place int64, err error) {
	place = -1
	for i := range int64(2) {
		b := make([]byte, copySize)
		if _, err := d.ReadAt(b, i*copySize); err != nil {
			return 0, 0, err
		}
		n := binary.LittleEndian.Uint32(b[4:])
		if crc32.ChecksumIEEE(b[4:]) == binary.LittleEndian.Uint32(b) && (place < 0 || n > number) {
			number, place = n, i
		}
	}
	if place < 0 {
		return 0, 0, errors.New("no good copy")
	}
	return number, place, nil
}

// update replaces the older copy, in writes of the given size.
func update(r *Recorder, size int, sync bool) error {
	number, place, err := newest(r)
	if err != nil {
		return err
	}
	data := record(number + 1)
	for off := 0; off < copySize; off += size {
		if _, err := r.WriteAt(data[off:off+size], (1-place)*copySize+int64(off)); err != nil {
			return err
		}
	}
	if sync {
		return r.Sync()
	}
	return nil
}

func TestMutantWithoutSyncIsCaught(t *testing.T) {
	for _, size := range []int{copySize, copySize / 4, 512} { // few writes an epoch, and many
		for _, sync := range []bool{true, false} {
			t.Run(fmt.Sprintf("writes of %d, sync %v", size, sync), func(t *testing.T) {
				base := New(2*copySize, Hostile)
				write(t, base, 0, record(1))
				r := Record(base)
				for range 2 {
					if err := update(r, size, sync); err != nil {
						t.Fatal(err)
					}
				}
				n, err := r.Cuts(Options{Exhaustive: 500}, func(c Cut) error {
					_, _, err := newest(c.Disk)
					return err
				})
				if sync && err != nil {
					t.Errorf("the right protocol fails: %v", err)
				}
				if !sync && err == nil {
					t.Errorf("the mutant survived %d states", n)
				}
				t.Logf("%d states: %v", n, err)
			})
		}
	}
}

// A recovery that takes the good copy away to write it again is harmless until
// it is cut itself.
func TestDepthTwo(t *testing.T) {
	recoverWith := func(mutant bool) func(*Recorder) error {
		return func(r *Recorder) error {
			number, place, err := newest(r)
			if err != nil {
				return err
			}
			if mutant { // the only good copy is gone for a moment
				_, err = r.WriteAt(make([]byte, 512), place*copySize)
				if err := errors.Join(err, r.Sync()); err != nil {
					return err
				}
				_, err = r.WriteAt(record(number), place*copySize)
			} else {
				_, err = r.WriteAt(record(number), (1-place)*copySize)
			}
			if err != nil {
				return err
			}
			return r.Sync()
		}
	}
	for _, mutant := range []bool{false, true} {
		base := New(2*copySize, Hostile)
		write(t, base, 0, record(1))
		r := Record(base)
		if err := update(r, copySize, true); err != nil {
			t.Fatal(err)
		}
		check := func(c Cut) error { _, _, err := newest(c.Disk); return err }
		once, err := r.Cuts(Options{}, check)
		if err != nil {
			t.Fatal(err)
		}
		n, err := r.Nested(Options{}, recoverWith(mutant), check)
		switch {
		case !mutant && (err != nil || n <= once):
			t.Errorf("the right recovery: %d states, %v", n, err)
		case mutant && (err == nil || !strings.Contains(err.Error(), "during recovery, cut in epoch")):
			t.Errorf("the mutant survived %d states: %v", n, err)
		}
	}
	r := Record(disk(t, "."))
	if _, err := r.Nested(Options{}, func(*Recorder) error { return errors.New("cannot") }, func(Cut) error { return nil }); err == nil {
		t.Error("a recovery that fails was not reported")
	}
}

// BenchmarkCuts measures states a second on a disk of 4 GiB.
func BenchmarkCuts(b *testing.B) {
	base := New(4<<30, Hostile)
	r := Record(base)
	for i := range int64(2000) {
		write(b, r, i*(2<<20), bytes.Repeat([]byte{1}, 4096))
	}
	buf := make([]byte, 64<<10)
	total := 0
	for b.Loop() {
		n, err := r.Cuts(Options{}, func(c Cut) error {
			_, err := c.Disk.ReadAt(buf, 1<<30)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		total += n
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "states/s")
}
