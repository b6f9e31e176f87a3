package image

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// A build that asks at the first start tells the installer what there is to choose from; and with
// lists that are damaged it is built all the same.
func TestChoicesInTheUKI(t *testing.T) {
	for name, c := range map[string]struct {
		asks, archive string
		want          bool
		says          string
	}{
		"asks": {asks: config.AskAtFirstStart, want: true}, "does not ask": {asks: config.NoneAtFirstStart},
		"damaged": {asks: config.AskAtFirstStart, archive: strings.Repeat("x", 64), says: "will not ask for a language"},
	} {
		files := rootfstest.Minimal()
		files["usr/lib/systemd/systemd"] = nil
		files["usr/share/zoneinfo/Europe/Berlin"] = []byte("TZif")
		files["etc/passwd"] = []byte("root:x:0:0:root:/root:/bin/sh\n")
		if c.archive != "" {
			files["usr/lib/locale/locale-archive"] = []byte(c.archive)
		}
		var said bytes.Buffer
		o := options(t, files.Write(t, false))
		o.Disk, o.Config.FirstStart, o.Progress = false, c.asks, NewProgress(&said)
		mustBuild(t, o)
		s, err := install.FromDirectory(o.Out)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if (s.Choices != nil) != c.want || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s: %+v\n%s", name, s.Choices, &said)
		}
		if c.want && (len(s.Choices.TimeZones) != 1 || !slices.Equal(s.Choices.Users, []string{"root"})) {
			t.Errorf("%s: %+v", name, s.Choices)
		}
		img, err := uki.Parse(read(t, o.Out, release.UKIFile))
		if err != nil {
			t.Fatal(err)
		}
		// What machines of earlier releases read of it is where it was.
		initrd, _ := img.Section(".initrd")
		if able := contract.AbilitiesFromInitrd(initrd); !able.Others {
			t.Errorf("%s: %+v", name, able)
		}
	}
}
