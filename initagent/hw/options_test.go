package hw

import (
	"maps"
	"slices"
	"testing"
)

// Parameters of modules and blacklists on the command line count as they do where
// modprobe loads the modules. FAULTS 112
func TestModuleOptions(t *testing.T) {
	options, banned := moduleOptions(`root=x nvme-core.default_ps_max_latency_us=0 usb_storage.quirks=1234:5678:u "a.b=c d" a.e="f g" quiet nvme_core.x ` +
		"modprobe.blacklist=nouveau,snd-hda-intel .y=1 z.=2 -- m.n=o\n")
	want := map[string]string{"nvme_core": "default_ps_max_latency_us=0 x", "usb_storage": "quirks=1234:5678:u", "a": `b="c d" e="f g"`}
	if !maps.Equal(options, want) {
		t.Errorf("options %q, want %q", options, want)
	}
	if !maps.Equal(banned, map[string]bool{"nouveau": true, "snd_hda_intel": true}) {
		t.Errorf("banned %v", banned)
	}
	k := &LinuxKernel{needs: map[string][]string{"nvme": {"nvme_core", "t10_pi", "crc64"}}}
	var loaded []string
	load := k.withOptions(func(m, o string) error { loaded = append(loaded, m+" "+o); return nil }, map[string]string{"nvme": "a=1", "nvme_core": "b=2", "crc64": "c=3"})
	if err := load("nvme"); err != nil || !slices.Equal(loaded, []string{"crc64 c=3", "nvme_core b=2", "nvme a=1"}) {
		t.Errorf("loaded %q, %v", loaded, err)
	}
}
