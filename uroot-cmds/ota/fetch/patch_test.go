package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/patch"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// patched is a world in which every block of the new image differs from the old one's by a
// byte, with patches in five groups; the last blocks have none.
type patched struct {
	*world
	table *patch.Table
	file  []byte
	test  testing.TB
}

const patchedBlocks = 1000

func newPatched(t testing.TB) *patched {
	t.Helper()
	w := &world{key: otatest.NewKey(t)}
	image := otatest.Image(imageBlocks, 1, 0, 0)
	w.old = otatest.Make(t, otatest.Spec{Version: 1, Key: w.key, Image: image})
	image = bytes.Clone(image)
	for i := range imageBlocks {
		image[i*blockindex.BlockSize+i] ^= 0x55
	}
	w.new = otatest.Make(t, otatest.Spec{Version: 2, Key: w.key, Image: image})
	w.site = otatest.NewSite(w.key)
	w.site.Publish(w.new, nil)
	p := &patched{world: w, test: t, table: &patch.Table{From: patch.Image{Root: w.old.Contract.Root(), Blocks: imageBlocks}, To: patch.Image{Root: w.new.Contract.Root(), Blocks: imageBlocks}}}
	const each = patchedBlocks / 5
	for first := 0; first < patchedBlocks; first += each {
		var b patch.Builder
		from, size := first*blockindex.BlockSize, each*blockindex.BlockSize
		added := bytes.Clone(image[from:][:size])
		for i, v := range w.old.Image[from:][:size] {
			added[i] -= v
		}
		b.Add(patch.Extent{New: first, NewBlocks: each, Old: first, OldBlocks: each}, []patch.Copy{{Add: size}}, added, nil)
		g, packed, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		g.Offset = p.table.Size()
		p.table.Groups, p.file = append(p.table.Groups, g), append(p.file, packed...)
	}
	p.publish(t)
	return p
}

// publish puts the patches on the server.
func (p *patched) publish(t testing.TB) {
	t.Helper()
	text, err := p.table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p.site.Put(otatest.Directory+patch.TableName(2, 1), text)
	p.site.Put(otatest.Directory+patch.SignatureName(2, 1), p.key.Sign(text))
	p.site.Put(otatest.Directory+patch.FileName(2, 1), p.file)
}

// With patches, what a machine fetches is the patches and the blocks that have none, to the
// byte what was said before, and the release is the same.
func TestPatches(t *testing.T) {
	p := newPatched(t)
	s := serve(t, p.site, true)
	m := newMachine(t, p.old)
	said := m.measure(s.URL)
	r, err := m.fetch(t.Context(), s.URL)
	if err != nil || r.Fetched != said.Bytes || r.Patched < 900*blockindex.BlockSize {
		t.Errorf("%+v, said %+v, %v; %s", r, said, err, m.notes.String())
	}
	m.has(p.new)
	if left := m.measure(s.URL); left != (Measured{}) {
		t.Errorf("when all is there: %+v", left)
	}
	delete(p.site.Files, otatest.Directory+patch.TableName(2, 1))
	without := newMachine(t, p.old).measure(s.URL)
	if most := without.Bytes*35/100 + int64(len(p.file)); said.Bytes > most {
		t.Errorf("%d bytes with patches of %d, %d without", said.Bytes, len(p.file), without.Bytes)
	}
}

// What is wrong with patches costs no update: the machine takes the blocks that have none.
func TestPatchesRefused(t *testing.T) {
	stranger := otatest.NewKey(t)
	for name, c := range map[string]struct {
		change func(p *patched)
		say    string // empty: nothing is said
		used   bool   // some patches are
	}{
		"a damaged group": {func(p *patched) { p.file[10] ^= 1 }, "another SHA-256", true},
		"another file": {func(p *patched) {
			for i := range p.file {
				p.file[i] ^= 1
			}
		}, "no more patches are used for this update: patches have another SHA-256", false},
		"a cut file":   {func(p *patched) { p.file = p.file[:len(p.file)-5] }, "no more patches are used", true},
		"no file":      {func(p *patched) { delete(p.site.Files, otatest.Directory+patch.FileName(2, 1)) }, "no more patches are used", false},
		"no signature": {func(p *patched) { delete(p.site.Files, otatest.Directory+patch.SignatureName(2, 1)) }, "are not used", false},
		"another's signature": {func(p *patched) {
			p.site.Put(otatest.Directory+patch.SignatureName(2, 1), stranger.Sign(p.site.Files[otatest.Directory+patch.TableName(2, 1)].Data))
		}, "are not used", false},
		"a changed table": {func(p *patched) { p.site.Files[otatest.Directory+patch.TableName(2, 1)].Data[50] ^= 1 }, "are not used", false},
		"another base":    {func(p *patched) { p.table.From.Root[3] ^= 1; p.publish(p.test) }, "for machines with another image", false},
		"another result":  {func(p *patched) { p.table.To.Root[3] ^= 1; p.publish(p.test) }, "make another image", false},
		"other contents": {func(p *patched) {
			var b patch.Builder
			b.Add(patch.Extent{New: 0, NewBlocks: 200, Old: 200, OldBlocks: 200}, []patch.Copy{{Add: 200 * blockindex.BlockSize}}, make([]byte, 200*blockindex.BlockSize), nil)
			g, packed, err := b.Encode()
			if err != nil {
				panic(err)
			}
			p.table.Groups, p.file = []patch.Group{g}, packed
			p.publish(p.test)
		}, "not what was signed", false},
		"no patches": {func(p *patched) { delete(p.site.Files, otatest.Directory+patch.TableName(2, 1)) }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatched(t)
			p.test = t
			c.change(p)
			if f := p.site.Files[otatest.Directory+patch.FileName(2, 1)]; f != nil {
				f.Data = p.file
			}
			m := newMachine(t, p.old)
			r, err := m.fetch(t.Context(), serve(t, p.site, true).URL)
			if err != nil || (r.Patched > 0) != c.used {
				t.Errorf("%+v, %v", r, err)
			}
			m.has(p.new)
			if said := m.notes.String(); !strings.Contains(said, c.say) || c.say == "" && said != "" {
				t.Errorf("said %q, want %q", said, c.say)
			}
		})
	}
}

// A server that does not give the file of patches is asked for one group, twice at most, and
// for no other; then the archive's blocks come.
func TestPatchesNotGiven(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *patched)
		answer func(w http.ResponseWriter, r *http.Request) bool
		most   int // requests
	}{
		"hangs before the answer": {nil, func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		}, 2},
		"hangs in the answer": {nil, func(w http.ResponseWriter, r *http.Request) bool {
			var from, to int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, 1<<20))
			w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
			w.WriteHeader(http.StatusPartialContent)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, 2},
		"is overloaded": {nil, func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, 2},
		"sends whole files": {nil, func(w http.ResponseWriter, _ *http.Request) bool {
			_, err := w.Write(make([]byte, 100))
			return err == nil
		}, 1},
		"has an empty file": {func(p *patched) { p.site.Put(otatest.Directory+patch.FileName(2, 1), nil) }, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatched(t)
			if c.change != nil {
				c.change(p)
			}
			m := newMachine(t, p.old)
			s := serve(t, p.site, true)
			s.onPatch = c.answer
			r, err := m.fetch(t.Context(), s.URL)
			if err != nil || r.Patched > 0 {
				t.Errorf("%+v, %v", r, err)
			}
			m.has(p.new)
			if n := s.asked(".patch"); n < 1 || n > c.most {
				t.Errorf("asked for patches %d times, at most %d are right", n, c.most)
			}
			if said := m.notes.String(); strings.Count(said, "no more patches are used") != 1 || strings.Contains(said, "of no use") {
				t.Errorf("said %q", said)
			}
		})
	}
}

// Which release runs is told to the server, by the table's name, when something of the image
// is to be fetched or measured, and not by a look, nor where the image is there already.
func TestPatchesAskedLate(t *testing.T) {
	p := newPatched(t)
	m := newMachine(t, p.old)
	s := serve(t, p.site, true)
	for range 2 {
		f, _, err := m.look(t.Context(), s.URL)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := json.Marshal(f); err != nil || bytes.Contains(text, []byte("patch")) {
			t.Errorf("found %.200s, %v", text, err)
		}
	}
	if n := s.asked(".patches"); n > 0 {
		t.Errorf("a look asked for the table %d times", n)
	}
	if _, err := m.fetch(t.Context(), s.URL); err != nil || s.asked(".patches") != 1 || s.asked(".patches.pgp") != 1 {
		t.Errorf("asked for the table %d times, for its signature %d times, %v", s.asked(".patches"), s.asked(".patches.pgp"), err)
	}
	if _, err := m.fetch(t.Context(), s.URL); err != nil || s.asked(".patches") != 1 {
		t.Errorf("with all in place: asked for the table %d times, %v", s.asked(".patches"), err)
	}
}

// A running system whose slot is not what it should be makes other blocks, which are
// fetched then.
func TestPatchesOfLyingSource(t *testing.T) {
	p := newPatched(t)
	m := newMachine(t, p.old)
	const lost = 100
	nothing := make([]byte, lost*blockindex.BlockSize)
	want := patchedBlocks
	for i := range lost {
		if b := p.old.Image[i*blockindex.BlockSize:][:blockindex.BlockSize]; !bytes.Equal(b, nothing[:len(b)]) {
			want--
		}
	}
	if _, err := m.file("a").WriteAt(nothing, 0); err != nil {
		t.Fatal(err)
	}
	r, err := m.fetch(t.Context(), serve(t, p.site, true).URL)
	if err != nil || r.Patched != int64(want)*blockindex.BlockSize || want > patchedBlocks-lost/2 {
		t.Errorf("%+v, want %d blocks by patches, %v", r, want, err)
	}
	m.has(p.new)
	if !strings.Contains(m.notes.String(), "blocks are not what was signed") {
		t.Errorf("said %q", m.notes.String())
	}
}

// cutting is a slot that is cut from power after so many writes.
type cutting struct {
	block.Device
	left   int
	cancel context.CancelFunc
}

func (c *cutting) WriteAt(p []byte, off int64) (int, error) {
	if c.left--; c.left == 0 {
		c.cancel()
	}
	if c.left <= 0 {
		return 0, context.Canceled // lost
	}
	return c.Device.WriteAt(p, off)
}

// Cut at any write, what was patched stays, only groups with blocks that lack are fetched
// again, and what is said to be left is what is fetched.
func TestPatchesCut(t *testing.T) {
	p := newPatched(t)
	whole := newMachine(t, p.old)
	s := serve(t, p.site, true)
	all := whole.measure(s.URL)
	for _, after := range []int{1, 2, 50, 199, 200, 201, 400, 777, 930, 950, 1000} {
		m := newMachine(t, p.old)
		ctx, cancel := context.WithCancel(t.Context())
		f, transport, err := m.look(ctx, s.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.job(transport, f, &cutting{m.file("b"), after, cancel}).Run(ctx)
		cancel()
		if err == nil {
			t.Fatalf("after %d writes nothing was cut", after)
		}
		said := m.measure(s.URL)
		if said.Bytes > all.Bytes || after > 250 && said.Bytes >= all.Bytes {
			t.Errorf("cut after %d writes: %d bytes left of %d", after, said.Bytes, all.Bytes)
		}
		r, err := m.fetch(t.Context(), s.URL)
		if err != nil || r.Fetched != said.Bytes {
			t.Errorf("cut after %d writes: said %+v, then %+v, %v", after, said, r, err)
		}
		m.has(p.new)
	}
}

// A server that has patches and sends whole files alone is one without patches.
func TestPatchesStream(t *testing.T) {
	p := newPatched(t)
	m := newMachine(t, p.old)
	r, err := m.fetch(t.Context(), serve(t, p.site, false).URL)
	if err != nil || r.Fetched != int64(len(p.new.Archive)) || r.Patched != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	m.has(p.new)
}
