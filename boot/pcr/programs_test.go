package pcr_test

import (
	"errors"
	"testing"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

func mustDigest(t testing.TB, s string) pcr.Digest {
	t.Helper()
	d, err := pcr.ParseDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func parsed(t testing.TB, name string) *pcr.Log {
	t.Helper()
	log, err := pcr.ParseLog(readFile(t, name+".eventlog"))
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// The logs were recorded under OVMF with systemd-boot and systemd-stub 252.39-1~deb12u2
// and a Debian kernel; the digests are those of the files, as package authenticode
// computes them, and the registers what the TPM held.
const (
	managerUnsigned = "7843e376e57323bcdfebcffc8d5109eb39721c83d8bedab1dfd6431596875c2c"
	managerSigned   = "9bf2519c746ec66b569300e423127a9361b47af7f66783c7e1378fb055671ad4"
	recordedUKI     = "c0c6692929718cc2eaf13805112e61cd6b5f38606e59707eef49b9fc7987d7d1"
	recordedKernel  = "798246871df714e0bfd8c7cae1ac5a69498011a0e3712429c45963d24bf57bc0"
)

// What real firmware measured is predicted from the files. FAULTS 94
func TestProgramsOfRealBoots(t *testing.T) {
	kernel := mustDigest(t, recordedKernel)
	for _, c := range []struct {
		log, manager string
		kernel       *pcr.Digest
		pcr4         string
		detour       bool // a boot option failed before
	}{
		{"systemd252-off", managerUnsigned, &kernel, "acdcda0a42874c3958eab454126ef4774afa127f80c519181231ec937405f0b8", false},
		{"systemd252-enforced", managerSigned, nil, "0229359cfd1e98daea250b5641fc8e62ba80bd1a10d24b85600421d3583854f3", false},
		{"systemd252-detour", managerUnsigned, &kernel, "010061f924c2eb30d5c2c4710066433bc7444786ab47420bb618c67c416f843c", true},
	} {
		manager, image, want := mustDigest(t, c.manager), mustDigest(t, recordedUKI), mustDigest(t, c.pcr4)
		p, err := parsed(t, c.log).Programs([]pcr.Digest{{1}, manager})
		if err != nil {
			t.Errorf("%s: %v", c.log, err)
			continue
		}
		if p.Manager != manager || p.UKI != image || (p.Kernel == nil) != (c.kernel == nil) || p.Kernel != nil && *p.Kernel != kernel {
			t.Errorf("%s: programs %+v", c.log, p)
		}
		if got := p.Predict(manager, image, c.kernel); got != want || p.Value() != want {
			t.Errorf("%s: PCR 4 is %s, the TPM had %s", c.log, got, want)
		}
		straight, detour := p.Usual()
		if (straight.Value() == want) == c.detour || (detour.Value() == want) != c.detour {
			t.Errorf("%s: straight %s, after a failed boot option %s, the TPM had %s", c.log, straight.Value(), detour.Value(), want)
		}
		if other := p.Predict(pcr.Digest{9}, image, c.kernel); other == want {
			t.Errorf("%s: another boot manager makes no difference", c.log)
		}
	}
	// One boot with and one without a failed option, of the same machine.
	manager := []pcr.Digest{mustDigest(t, managerUnsigned)}
	plain, err := parsed(t, "systemd252-off").Programs(manager)
	if err != nil {
		t.Fatal(err)
	}
	long, err := parsed(t, "systemd252-detour").Programs(manager)
	if err != nil {
		t.Fatal(err)
	}
	_, detour := plain.Usual()
	straight, _ := long.Usual()
	if detour.Value() != long.Value() || straight.Value() != plain.Value() {
		t.Error("the two do not predict each other")
	}
}

// What is not understood is not predicted. FAULTS 94
func TestProgramsRefused(t *testing.T) {
	const app = pcr.EventBootApplication
	manager, image := sum([]byte("manager")), sum([]byte("uki"))
	chain := func() *builder {
		return newLog(pcr.SHA256).event(4, pcr.EventEFIAction, []byte("Calling EFI Application from Boot Option")).
			event(4, pcr.EventSeparator, make([]byte, 4)).event(4, app, []byte("manager")).event(4, app, []byte("uki"))
	}
	for name, c := range map[string]struct {
		log  *builder
		good bool
	}{
		"as it is":          {chain(), true},
		"with a kernel":     {chain().event(4, app, []byte("kernel")), true},
		"without the rest":  {newLog(pcr.SHA256).event(4, app, []byte("manager")), false},
		"no boot manager":   {newLog(pcr.SHA256).event(4, app, []byte("other")).event(4, app, []byte("uki")), false},
		"four programs":     {chain().event(4, app, []byte("kernel")).event(4, app, []byte("one more")), false},
		"an action after":   {chain().event(4, pcr.EventEFIAction, []byte("Returning")), false},
		"no program after":  {newLog(pcr.SHA256).event(4, app, []byte("manager")).event(4, pcr.EventIPL, []byte("uki")), false},
		"nothing in PCR 4":  {newLog(pcr.SHA256).event(5, app, []byte("manager")), false},
		"another bank":      {newLog(pcr.SHA1).event(4, app, []byte("manager")).event(4, app, []byte("uki")), false},
		"one of its own":    {newLog(pcr.SHA256).event(4, app, []byte("firmware's own")).event(4, app, []byte("manager")).event(4, app, []byte("uki")), true},
		"it came back once": {chain().event(4, app, []byte("manager")).event(4, app, []byte("uki")), true},
	} {
		log, err := pcr.ParseLog(c.log.bytes())
		if err != nil {
			t.Fatal(err)
		}
		p, err := log.Programs([]pcr.Digest{manager})
		if (err == nil) != c.good || err != nil && !errors.Is(err, pcr.ErrPrograms) {
			t.Errorf("%s: %+v, %v", name, p, err)
			continue
		}
		if err != nil {
			continue
		}
		values, err := log.PCRs()
		if err != nil || p.Value() != values[4] || p.UKI != image {
			t.Errorf("%s: PCR 4 is %s, the replay has %s (%v)", name, p.Value(), values[4], err)
		}
	}
}

// The command line of a UKI is told from what comes from outside it, by what real
// boots have left in PCR 12. FAULTS 92
func TestOwnCommandLine(t *testing.T) {
	img := image(t, ukitest.Stub("252.39-1~deb12u2"), uki.Section{Name: ".cmdline", Data: []byte("console=ttyS0 quiet  panic=1 ")})
	for name, want := range map[string]int{"systemd252-off": 2, "systemd252-enforced": 1} {
		values, err := parsed(t, name).PCRs()
		if err != nil {
			t.Fatal(err)
		}
		times, own := pcr.CommandLineTimes(img, values[12])
		if !own || times != want || pcr.OwnCommandLine(img, times) != values[12] {
			t.Errorf("%s: %d times, own %v, want %d", name, times, own, want)
		}
		if got := pcr.ManagerTimes(252, name == "systemd252-enforced"); got != want {
			t.Errorf("%s: predicted %d times, measured %d", name, got, want)
		}
		if _, own := pcr.CommandLineTimes(img, values[12].Extend(sum([]byte("a credential")))); own {
			t.Errorf("%s: what comes on top is taken for its own", name)
		}
	}
	if times, own := pcr.CommandLineTimes(img, pcr.Digest{}); !own || times != 0 || pcr.ManagerTimes(257, false)+pcr.ManagerTimes(257, true) != 0 || pcr.ManagerTimes(254, true) != 1 || pcr.ManagerTimes(254, false) != 2 {
		t.Errorf("nothing was measured: %d, %v", times, own)
	}
	foreign := pcr.Digest{}.Extend(sum([]byte("systemd.debug_shell=1\x00")))
	if _, own := pcr.CommandLineTimes(img, foreign); own {
		t.Error("another command line is taken for its own")
	}
	if _, own := pcr.CommandLineTimes(img, pcr.OwnCommandLine(img, 3)); own {
		t.Error("three times is taken for its own")
	}
}

// Characters as systemd-boot passes them on (252.39, test-efi-string.c has more).
func TestLoadOptions(t *testing.T) {
	for text, want := range map[string]string{
		"":                "\x00\x00",
		"a\n":             "a\x00\x00\x00",
		"a \t\n":          "a\x00\x00\x00",
		"a\x00b":          "a\x00\x00\x00",
		"\ta":             " \x00a\x00\x00\x00",
		"ä":               "\xe4\x00\x00\x00",
		"a\xff\U0001f600": "a\x00\x00\x00",
	} {
		sections := []uki.Section{{Name: ".osrel", Data: []byte("x")}}
		if text != "" {
			sections = append(sections, uki.Section{Name: ".cmdline", Data: []byte(text)})
		}
		img := image(t, ukitest.Stub("252"), sections...)
		if got := pcr.OwnCommandLine(img, 1); got != (pcr.Digest{}).Extend(sum([]byte(want))) {
			t.Errorf("%q is not measured as %q", text, want)
		}
	}
}
