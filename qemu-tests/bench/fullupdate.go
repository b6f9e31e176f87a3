package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/qemu-tests/bench/measure"
)

// byHand is how an archive is brought into a slot without this project.
const byHand = "sha256sum; gzip -d, tar; veritysetup"

// handScript: $1 archive, $2 its SHA-256, $3 directory, $4 salt, $5 root hash.
const handScript = `echo "$2  $1" | sha256sum --check --quiet
mkdir "$3"
gzip -dc "$1" | tar -C "$3" -xf -
veritysetup format --salt="$4" "$3/system.erofs" "$3/verity" | grep -q "$5"
sync "$3"/*`

// maxUpdateMemory is what an update may hold of a machine's memory, in bytes.
const maxUpdateMemory = 32 << 20

// fullUpdate plans row 5: from an archive to a slot that was verified. Ours
// fetches it over HTTP, by hand it is there already.
func (b *bench) fullUpdate(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	tool := filepath.Join(b.work, "benchtest")
	if _, err := measure.Command("go", "build", "-o", tool, "./uroot-cmds/ota/benchtest")(ctx); err != nil {
		return nil, nil, err
	}
	old, fresh := filepath.Join(b.images, "update-1"), filepath.Join(b.images, "update-2")
	sides, err := b.updates(ctx, tool, old, fresh,
		"--key", filepath.Join(b.key, "secret.asc"), "--password-file", filepath.Join(b.key, "password"), "--allow-unencrypted-storage")
	if err != nil {
		return nil, nil, err
	}
	var growths []measure.Growth
	for _, m := range []measure.Metric{measure.Wall, measure.Memory} {
		growths = append(growths, measure.Growth{Number: 5, Name: "update-growth-" + m.Name, Work: "full update, " + m.Name, Over: "image", Metric: m, Runs: 1})
	}
	for _, s := range b.sizes() {
		image, err := b.sized(ctx, s.at, s.size)
		if err != nil {
			return nil, nil, err
		}
		running := filepath.Join(b.work, "build-running")
		if _, err := os.Stat(running); err != nil {
			if _, err := b.build(b.rootfs, image.config, "1", running)(ctx); err != nil {
				return nil, nil, err
			}
		}
		at, err := b.updates(ctx, tool, running, image.build)
		if err != nil {
			return nil, nil, err
		}
		growths[0].Points = append(growths[0].Points, measure.Point{At: s.at, Sides: at})
		growths[1].Points = append(growths[1].Points, measure.Point{At: s.at, Sides: at[:1]})
	}
	const work = "full update, archive to verified slot"
	return []measure.Job{{
		Name: "full-update", Sides: sides,
		Goals: []measure.Goal{
			{Number: 5, Work: work, Metric: measure.Wall, Against: byHand, Kind: measure.TimesBetter, N: 3.5},
			{Number: 5, Work: work, Metric: measure.Memory, Kind: measure.AtMost, N: maxUpdateMemory},
		},
	}}, growths, nil
}

// updates publishes a build and returns the sides that update to it.
func (b *bench) updates(ctx context.Context, tool, old, fresh string, key ...string) ([]measure.Side, error) {
	r, err := described(fresh)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(fresh)
	server, slot, directory := filepath.Join(b.work, "server-"+name), filepath.Join(b.work, "slot-"+name), filepath.Join(b.work, "hand-"+name)
	if _, err := os.Stat(server); err != nil {
		if _, err := measure.Command(filepath.Join(b.bin, "halogen"), append([]string{"release", "--build", fresh, "--server", server}, key...)...)(ctx); err != nil {
			return nil, err
		}
	}
	url, err := serve(ctx, server)
	if err != nil {
		return nil, err
	}
	archive := filepath.Join(server, r.Arch, r.ImageID, manifest.ArchiveName(r.Version))
	sum, err := digest(archive)
	if err != nil {
		return nil, err
	}
	same := func(file string) func(context.Context) error {
		return func(context.Context) error { return startsWith(file, filepath.Join(fresh, release.ImageFile)) }
	}
	return []measure.Side{{
		Name: "ota fetch", Before: emptied(slot),
		Run:   measure.Command(tool, "-fetch", slot, "-url", url, "-old", old),
		Check: func(ctx context.Context) error { return checkSlot(ctx, slot, r, same(filepath.Join(slot, "system"))) },
	}, {
		Name: byHand, Before: without(directory),
		Run:   measure.Script(handScript, archive, hexOf(sum), directory, hexOf(r.Salt), hexOf(r.RootHash)),
		Check: same(filepath.Join(directory, release.ImageFile)),
	}}, nil
}

// checkSlot has veritysetup look at the slot's tree, too.
func checkSlot(ctx context.Context, slot string, r *release.Release, same func(context.Context) error) error {
	_, err := measure.Command("veritysetup", "verify", filepath.Join(slot, "system"), filepath.Join(slot, "verity"), hexOf(r.RootHash))(ctx)
	return errors.Join(err, same(ctx))
}

// startsWith compares a file with the start of a slot.
func startsWith(slot, file string) error {
	s, err := os.Open(slot)
	if err != nil {
		return err
	}
	defer s.Close()
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := s.Stat()
	if err != nil {
		return err
	}
	if info.Size() < verity.BlockSize {
		return errors.New("the slot is empty")
	}
	return sameBytes(s, f)
}

// emptied makes an empty directory.
func emptied(directory string) func(context.Context) error {
	return func(context.Context) error { return errors.Join(os.RemoveAll(directory), os.Mkdir(directory, 0o755)) }
}

// serve is a web server with a directory, until the context ends.
func serve(ctx context.Context, directory string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(directory)), ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() }) // nobody is left to answer
	go func() { _ = server.Serve(l) }()                   // its clients fail where it does
	return "http://" + l.Addr().String(), nil
}
