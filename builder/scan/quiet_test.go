package scan

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

// TestRandomBytes searches bytes that a seeded generator makes, in files of a
// megabyte, and some of them as Base64 and in hexadecimal: 1 GB, or as many as
// HALOGEN_RANDOM_GB says.
func TestRandomBytes(t *testing.T) {
	gigabytes := 1
	if v := os.Getenv("HALOGEN_RANDOM_GB"); v != "" {
		gigabytes = must[int](t)(strconv.Atoi(v))
	} else if testing.Short() {
		t.Skip("it takes seconds")
	}
	s := New(nil)
	start := time.Now()
	files := make(chan uint64)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			data := make([]byte, 1<<20)
			for n := range files {
				var seed [32]byte
				binary.LittleEndian.PutUint64(seed[:], n)
				rand.NewChaCha8(seed).Read(data)
				if err := s.Bytes(t.Context(), fmt.Sprintf("/%d", n), data); err != nil {
					t.Error(err)
				}
				if n%64 != 0 {
					continue
				}
				text := fmt.Appendf(nil, "%s\n%x\n", base64.StdEncoding.EncodeToString(data), data)
				if err := s.Bytes(t.Context(), fmt.Sprintf("/%d.txt", n), text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range uint64(gigabytes << 10) {
		files <- n
	}
	close(files)
	workers.Wait()
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
	t.Logf("%d GB in %.1f s", gigabytes, time.Since(start).Seconds())
}

// TestChanceIsNoPacket makes OpenPGP packets of which all is right that is
// compared with something fixed, and chance has made the rest: what a scan of
// random bytes meets once in some gigabytes. None must pass for a key.
func TestChanceIsNoPacket(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	draw := rand.New(r)
	data := make([]byte, 4096)
	for n := range 200_000 {
		r.Read(data)
		size := 600 + draw.IntN(3000)
		data[0] = []byte{0x95, 0x9d}[n&1]
		binary.BigEndian.PutUint16(data[1:], uint16(size))
		data[3] = byte(3 + n>>1&1)
		binary.BigEndian.PutUint32(data[4:], uint32(1_000_000_000+draw.IntN(1e9)))
		at := 8
		if data[3] == 3 {
			at += 2
		}
		data[at] = byte(1 + draw.IntN(3))
		at = setNumber(data, at+1, 512+draw.IntN(1500))
		at = setNumber(data, at, 2+draw.IntN(60))
		data[at] = []byte{1, 3, 7, 9, 253, 254, 255}[draw.IntN(7)]
		if data[at] >= 253 {
			copy(data[at+1:], []byte{9, 3, 8})
		}
		// Half of a key's length is left out of what chance may hit.
		if rest := 3 + size - at; rest > 2*(at-9)-40 && rest < 3*(at-9)+100 {
			continue
		}
		if secretPacket(data[:3+size]) {
			t.Fatalf("packet %d passes for a key: %x", n, data[:64])
		}
	}
}

// setNumber makes an odd number of so many bits, and returns where it ends.
func setNumber(data []byte, at, bits int) int {
	binary.BigEndian.PutUint16(data[at:], uint16(bits))
	size := (bits + 7) / 8
	data[at+2] = data[at+2]&(1<<((bits-1)%8)-1) | 1<<((bits-1)%8)
	data[at+1+size] |= 1
	return at + 2 + size
}

// realKeys are what a Debian with a desktop and servers holds and is a key: made when a
// package was installed, or Mozilla's own token.
const realKeys = `private-key-pem=
	/etc/ssl/private/ssl-cert-snakeoil.key  made by ssl-cert
private-key-ssh=
	/etc/ssh/ssh_host_*_key  made by openssh-server
cloud-token=
	/usr/lib/firefox-esr/omni.ja**  what Mozilla calls Google's services with
`

// TestDesktop searches a Debian with a desktop, servers and a browser, named by
// HALOGEN_DESKTOP (make scan-debian makes it), and finds nothing in it but keys.
func TestDesktop(t *testing.T) {
	dir := os.Getenv("HALOGEN_DESKTOP")
	if dir == "" {
		t.Skip("HALOGEN_DESKTOP names no tree: run `make scan-debian`")
	}
	var allow []Allow
	var rule string
	for line := range strings.Lines(realKeys) {
		if name, ok := strings.CutSuffix(line, "=\n"); ok {
			rule = name
			continue
		}
		allow = append(allow, must[[]Allow](t)(ParseAllow(rule, line))...)
	}
	s := New(allow)
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
	files, bytes := s.Searched()
	_, allowed := s.Findings()
	if files < 20_000 {
		t.Errorf("a desktop of %d files", files)
	}
	t.Logf("%d files, %d MB, %d keys", files, bytes>>20, len(allowed))
}

func FuzzSquashFS(f *testing.F) {
	testkit.Need(f, "mksquashfs")
	for _, p := range squashPlants(newWorkshop(f), []byte("key\n")) {
		f.Add(p.data)
	}
	f.Add([]byte("hsqs"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := New(nil)
		j := s.job(t.Context())
		j.budget = 16 << 20
		if err := j.squashFS("/f", data, 0); err != nil {
			t.Fatal(err)
		}
		if j.held != 0 {
			t.Errorf("%d bytes are still counted", j.held)
		}
	})
}
