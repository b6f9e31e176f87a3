package layout

import (
	"io"
	"math/rand/v2"
	"testing"

	"halogenos.internal/boot/gpt"
)

// FAULTS 112 (M9)
func TestOwnIDs(t *testing.T) {
	image := installed(8<<30, 512, 1<<30)
	image.Disk, image.Partitions[0].UUID = DiskImageIDs("os", "7")
	seen := map[gpt.GUID]bool{image.Disk: true, image.Partitions[0].UUID: true}
	for n := range byte(4) {
		own, changed, err := OwnIDs(image, "os", "7", rand.NewChaCha8([32]byte{n}))
		if err != nil || !changed {
			t.Fatalf("changed: %v, %v", changed, err)
		}
		if seen[own.Disk] || seen[own.Partitions[0].UUID] || own.Partitions[0].UUID != OwnESP(image.Partitions[0].UUID, own.Disk) {
			t.Errorf("the disk is %v, its ESP %v", own.Disk, own.Partitions[0].UUID)
		}
		if err := own.Validate(); err != nil || own.Partitions[1] != image.Partitions[1] {
			t.Errorf("table %+v, %v", own, err)
		}
		seen[own.Disk], seen[own.Partitions[0].UUID] = true, true
		if again, changed, err := OwnIDs(own, "os", "7", rand.NewChaCha8([32]byte{})); err != nil || changed || again.Disk != own.Disk {
			t.Errorf("once more: changed %v, %v", changed, err)
		}
	}
	if _, changed, err := OwnIDs(image, "os", "8", rand.NewChaCha8([32]byte{})); err != nil || changed {
		t.Errorf("another release's: changed %v, %v", changed, err)
	}
	if _, _, err := OwnIDs(image, "os", "7", empty{}); err == nil {
		t.Error("without random bytes it goes on")
	}
}

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
