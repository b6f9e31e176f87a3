// Package initramfs makes the part of the initramfs that does not depend on
// the system image: the machine's busybox and the kernel modules it needs.
//
// It refuses a busybox that could not run as the first process or would leave
// secrets in memory, and modules that the kernel would not load. It knows
// nothing of the boot contract, which lies in an archive of its own before this
// one.
package initramfs

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"halogenos.internal/boot/verity"
)

// Init is the command of the busybox that runs as PID 1.
const Init = "initagent"

const maxCommands = 1024

// A Busybox is one program that is several commands, by the name it is called
// with.
type Busybox struct {
	Program  []byte   // a static ELF executable
	Commands []string // names of the commands in it
}

// ParseCommands reads a list of commands: a name a line, '#' for comments.
func ParseCommands(text string) ([]string, error) {
	form := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	var names []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		if !form.MatchString(name) {
			return nil, fmt.Errorf("command %q is not a name", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// check refuses a busybox that cannot be PID 1 of an initramfs.
func (b Busybox) check() error {
	if !slices.Contains(b.Commands, Init) {
		return fmt.Errorf("busybox has no command %s", Init)
	}
	if len(b.Commands) > maxCommands {
		return fmt.Errorf("busybox has %d commands, more than %d", len(b.Commands), maxCommands)
	}
	f, err := elf.NewFile(bytes.NewReader(b.Program))
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("busybox is for %v, want %v", f.Machine, elf.EM_X86_64)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("busybox is linked dynamically: build it with CGO_ENABLED=0")
		}
	}
	if err := erasesSecrets(b.Program); err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	return nil
}

// Experiment is the one of Go that a program needs to erase secrets from its
// memory (boot/secretmem).
const Experiment = "runtimesecret"

// erasesSecrets refuses a program that Go built without the experiment. One that
// does not say how it was built is not one of Go's, and not this project's.
func erasesSecrets(program []byte) error {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return nil
	}
	for _, s := range info.Settings {
		if s.Key == "GOEXPERIMENT" && slices.Contains(strings.Split(s.Value, ","), Experiment) {
			return nil
		}
	}
	return fmt.Errorf("%s built it without GOEXPERIMENT=%s: it would leave secrets in memory (`make build` sets it)", info.GoVersion, Experiment)
}

// directories of the initramfs beside those of its files.
var directories = []string{"etc", "proc", "root", "run", "sys", "sysroot", "tmp"}

// pieceAlign is what each archive of the initramfs but the last is filled up to with zeros,
// in bytes: where that one has not changed, a machine has its blocks already.
const pieceAlign = verity.BlockSize

// Build returns two archives, one after the other, each compressed with zstd. The same input
// gives the same bytes.
func Build(b Busybox, x *Index, files Files, modules []string) ([]byte, error) {
	plain, err := Archives(b, x, files, modules)
	if err != nil {
		return nil, err
	}
	return Join(plain, Compress)
}

// Join packs archives, and puts them one after the other.
func Join(plain [][]byte, compress func([]byte) ([]byte, error)) ([]byte, error) {
	var out []byte
	for _, p := range plain {
		packed, err := compress(p)
		if err != nil {
			return nil, err
		}
		out = append(out, make([]byte, -len(out)&(pieceAlign-1))...)
		out = append(out, packed...)
	}
	return out, nil
}

// Archives returns the archives as they are before [Join]: the programs, and what is of the
// kernel, which changes more often.
func Archives(b Busybox, x *Index, files Files, modules []string) ([][]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	contents, err := x.load(files, modules)
	if err != nil {
		return nil, err
	}
	var records []cpio.Record
	for _, name := range directories {
		records = append(records, cpio.Directory(name, 0o755))
	}
	records = append(records,
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.StaticFile("bin/bb", string(b.Program), 0o755),
		// The busybox takes the last symbolic link's name for its command.
		cpio.Symlink("init", "bin/"+Init),
	)
	for _, name := range b.Commands {
		records = append(records, cpio.Symlink("bin/"+name, "bb"))
	}
	if slices.Contains(b.Commands, "modprobe") {
		// Where the kernel looks for it when it wants a module itself.
		records = append(records, cpio.Symlink("sbin/modprobe", "../bin/bb"))
	}
	var ofKernel []cpio.Record
	for _, f := range contents {
		ofKernel = append(ofKernel, cpio.StaticFile(f.name, string(f.data), 0o644))
	}
	var out [][]byte
	for _, piece := range [][]cpio.Record{records, ofKernel} {
		plain, err := archive(piece)
		if err != nil {
			return nil, err
		}
		out = append(out, plain)
	}
	return out, nil
}

// archive writes records as newc, without times, owners or inode numbers. Each
// comes after the directories that it is in.
func archive(records []cpio.Record) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out) // drops a name that it has had
	for _, r := range records {
		for i := range len(r.Name) {
			if r.Name[i] != '/' {
				continue
			}
			if err := w.WriteRecord(cpio.Directory(r.Name[:i], 0o755)); err != nil {
				return nil, fmt.Errorf("write initramfs: %w", err)
			}
		}
		if err := w.WriteRecord(r); err != nil {
			return nil, fmt.Errorf("write initramfs: %w", err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("end initramfs: %w", err)
	}
	return out.Bytes(), nil
}

// Compress returns an archive as the kernel unpacks it. It uses one core: with more, the
// result would depend on how many.
func Compress(plain []byte) ([]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("compress initramfs: %w", err)
	}
	packed := z.EncodeAll(plain, nil)
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress initramfs: %w", err)
	}
	// The kernel wants each archive of an initramfs to start at a multiple of
	// four bytes, and skips zero bytes in between.
	for len(packed)%4 != 0 {
		packed = append(packed, 0)
	}
	return packed, nil
}

// Holds reports whether Compress could have made one of the other: it unpacks to the same
// bytes, and has no more than the padding after that.
func Holds(packed, plain []byte) bool {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(len(plain))+1<<20)) // a window is larger than small content
	if err != nil {
		return false
	}
	defer z.Close()
	for range 4 {
		have, err := z.DecodeAll(packed, make([]byte, 0, len(plain)))
		if err == nil {
			return bytes.Equal(have, plain)
		}
		rest, padded := bytes.CutSuffix(packed, []byte{0})
		if !padded {
			return false
		}
		packed = rest
	}
	return false
}
