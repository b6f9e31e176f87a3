package offer

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/settings"
)

// Facts in, verdicts out. FAULTS 2, 6
func TestDecide(t *testing.T) {
	base := func() (*Self, *release.Release, manifest.Entry) {
		s := &Self{
			Running: &contract.Contract{ImageID: "os", Arch: "x86_64", Version: 10, Epoch: 2}, Floor: 2,
			Failed: map[contract.Version]string{12: "it hung"}, Machine: []byte("m"), SlotSize: 8 << 20, TreeSize: 1 << 20,
		}
		return s, &release.Release{ImageID: "os", Arch: "x86_64", Version: 11, Epoch: 2, ImageSize: 4 << 20}, manifest.Entry{Version: 11}
	}
	for name, c := range map[string]struct {
		change  func(s *Self, r *release.Release, e *manifest.Entry)
		verdict Verdict
		reason  string
	}{
		"newer":           {func(*Self, *release.Release, *manifest.Entry) {}, Take, "version 11 is newer than 10"},
		"the same":        {func(_ *Self, r *release.Release, e *manifest.Entry) { r.Version, e.Version = 10, 10 }, Current, "version 10, the newest"},
		"older":           {func(_ *Self, r *release.Release, e *manifest.Entry) { r.Version, e.Version = 9, 9 }, Current, "nothing to do until a newer one"},
		"failed":          {func(_ *Self, r *release.Release, e *manifest.Entry) { r.Version, e.Version = 12, 12 }, Spent, "it hung) and is not tried again: the next release will be"},
		"mixed":           {func(_ *Self, r *release.Release, e *manifest.Entry) { e.Version = 13 }, Refuse, "archive of version 13 holds version 11"},
		"an older one":    {func(_ *Self, r *release.Release, e *manifest.Entry) { r.Version = 9 }, Refuse, "archive of version 11 holds version 9"},
		"another image":   {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.ImageID = "other" }, Refuse, "another installation"},
		"another arch":    {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.Arch = "aarch64" }, Refuse, "this one is x86_64"},
		"an older epoch":  {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.Epoch = 1 }, Refuse, "epoch 1, and this machine's floor is 2"},
		"under the floor": {func(s *Self, _ *release.Release, _ *manifest.Entry) { s.Floor = 3 }, Refuse, "floor is 3"},
		"a newer epoch":   {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.Epoch = 9 }, Take, "newer"},
		"none of them":    {func(_ *Self, _ *release.Release, e *manifest.Entry) { e.Limited = true }, Later, "0 % of the machines first"},
		"impatient":       {func(s *Self, _ *release.Release, e *manifest.Entry) { e.Limited, s.Impatient = true, true }, Take, "newer"},
		"all of them":     {func(_ *Self, _ *release.Release, e *manifest.Entry) { e.Limited, e.Percent = true, 100 }, Take, "newer"},
		"too large":       {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.ImageSize, r.SlotSize = 9<<20, 16<<20 }, Refuse, "needs slots of 16 MiB, and this machine's have 8 MiB: `ota grow`"},
		"larger slots":    {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.SlotSize = 16 << 20 }, Refuse, "`ota grow`"},
		"larger and failed": {func(_ *Self, r *release.Release, e *manifest.Entry) {
			r.SlotSize, r.Version, e.Version = 16<<20, 12, 12
		}, Spent, "it hung"},
		"slots that suffice": {func(_ *Self, r *release.Release, _ *manifest.Entry) { r.SlotSize = 8 << 20 }, Take, "newer"},
		"too many blocks":    {func(s *Self, _ *release.Release, _ *manifest.Entry) { s.TreeSize = 4096 }, Refuse, "partition for it has 0"},
		"sizes unknown":      {func(s *Self, _ *release.Release, _ *manifest.Entry) { s.SlotSize, s.TreeSize = 0, 0 }, Take, "newer"},
	} {
		s, r, e := base()
		c.change(s, r, &e)
		d := s.ByRelease(r, e, manifest.Stable)
		if d.Verdict != c.verdict || !strings.Contains(d.Reason, c.reason) || d.Version != e.Version {
			t.Errorf("%s: %+v, want %s, %q", name, d, c.verdict, c.reason)
		}
		if needs := strings.Contains(c.reason, "ota grow"); needs != (d.SlotSize == 16<<20) || !needs && d.SlotSize != 0 {
			t.Errorf("%s: it needs slots of %d bytes", name, d.SlotSize)
		}
		refused := c.verdict == Refuse || c.verdict == Spent
		if _, is := errors.AsType[*Refused](d.Err()); is != refused {
			t.Errorf("%s: error %v", name, d.Err())
		}
	}
}

func TestManifestSigned(t *testing.T) {
	key, stranger := otatest.NewKey(t), otatest.NewKey(t)
	running := func(k *otatest.Key) *contract.Contract {
		return otatest.Make(t, otatest.Spec{Version: 1, Key: k, Image: otatest.Image(4, 1, 0, 0)}).Contract
	}
	signed, unsigned := running(key), running(nil)
	text := []byte("STABLE=2\nPUBKEY=k\nSEQUENCE=7\n")
	const ours, theirs = "STABLE=2\nPUBKEY=k\nIMAGE=x86_64/test-os\nSEQUENCE=8\n", "STABLE=2\nPUBKEY=k\nIMAGE=aarch64/test-os\nSEQUENCE=9\n"
	for name, c := range map[string]struct {
		running   *contract.Contract
		demand    settings.Demand
		seen      Seen
		text      string
		signature []byte
		want      string
		then      Seen
	}{
		"signed":                   {signed, settings.Auto, Seen{}, "", key.Sign(text), "", Seen{7, true, false}},
		"signed, seen before":      {signed, settings.Auto, Seen{7, true, false}, "", key.Sign(text), "", Seen{7, true, false}},
		"signed, an old one":       {signed, settings.Auto, Seen{8, true, false}, "", key.Sign(text), "has seen 8", Seen{}},
		"signed, an old one, no":   {signed, settings.Never, Seen{8, true, false}, "", key.Sign(text), "has seen 8", Seen{}},
		"says whose":               {signed, settings.Auto, Seen{7, true, false}, ours, key.Sign([]byte(ours)), "", Seen{8, true, true}},
		"counted by another's":     {signed, settings.Auto, Seen{500, true, false}, ours, key.Sign([]byte(ours)), "", Seen{8, true, true}},
		"says whose, an old one":   {signed, settings.Auto, Seen{9, true, true}, ours, key.Sign([]byte(ours)), "has seen 9", Seen{}},
		"another image's":          {signed, settings.Auto, Seen{7, true, false}, theirs, key.Sign([]byte(theirs)), "lists the releases of aarch64/test-os", Seen{}},
		"another's, not signed":    {unsigned, settings.Auto, Seen{}, "STABLE=2\nIMAGE=x86_64/desktop\n", nil, "lists the releases of x86_64/desktop", Seen{}},
		"says no more whose":       {signed, settings.Never, Seen{7, true, true}, "", key.Sign(text), "does not say whose", Seen{}},
		"by a stranger":            {signed, settings.Never, Seen{}, "", stranger.Sign(text), "do not belong together", Seen{}},
		"not signed":               {signed, settings.Auto, Seen{}, "", nil, "", Seen{}},
		"not signed any more":      {signed, settings.Auto, Seen{7, true, false}, "", nil, "RequireSignedManifest=no", Seen{}},
		"not signed any more, no":  {signed, settings.Never, Seen{7, true, false}, "", nil, "", Seen{7, true, false}},
		"not signed, but demanded": {signed, settings.Always, Seen{}, "", nil, "RequireSignedManifest is yes", Seen{}},
		"no PUBKEY":                {signed, settings.Auto, Seen{}, "STABLE=2\n", nil, "names no PUBKEY", Seen{}},
		"an unsigned image":        {unsigned, settings.Auto, Seen{}, "STABLE=2\n", nil, "", Seen{}},
		"its server signs now":     {unsigned, settings.Auto, Seen{}, "", nil, "ReleaseKey=none", Seen{}},
		"it cannot check":          {unsigned, settings.Always, Seen{}, "STABLE=2\n", nil, "no release key to check", Seen{}},
	} {
		s := &Self{Running: c.running, Signed: c.demand, Seen: c.seen, Now: otatest.Date.Add(time.Hour)}
		use := text
		if c.text != "" {
			use = []byte(c.text)
		}
		_, seen, err := s.Manifest(use, c.signature)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && seen != c.then {
			t.Errorf("%s: remembers %+v, want %+v", name, seen, c.then)
		}
	}
}

// An image without a key takes what is not signed, and nothing else; one with a
// key the other way round. FAULTS 1
func TestAuthenticate(t *testing.T) {
	key, stranger := otatest.NewKey(t), otatest.NewKey(t)
	text := []byte("release")
	for name, c := range map[string]struct {
		pinned    *otatest.Key
		signature []byte
		want      string
	}{
		"signed":                {key, key.Sign(text), ""},
		"not signed":            {key, nil, "is not signed"},
		"by a stranger":         {key, stranger.Sign(text), "signature is by"},
		"over something else":   {key, key.Sign([]byte("other")), "does not fit"},
		"unsigned":              {nil, nil, ""},
		"unsigned, yet it is":   {nil, key.Sign(text), "no key to check it"},
		"a key for a signature": {key, key.Public, "release.json.pgp"},
	} {
		r := otatest.Make(t, otatest.Spec{Version: 1, Key: c.pinned, Image: otatest.Image(4, 1, 0, 0)})
		s := &Self{Running: r.Contract, Now: otatest.Date.Add(time.Hour)}
		if err := s.Authenticate(text, c.signature); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestUKI(t *testing.T) {
	key, stranger := otatest.NewKey(t), otatest.NewKey(t)
	make := func(v contract.Version, pinned *otatest.Key) *otatest.Release {
		return otatest.Make(t, otatest.Spec{Version: v, Key: key, Pinned: pinned, Image: otatest.Image(4, 1, 0, 0)})
	}
	one, two := make(1, key), make(2, key)
	s := &Self{Running: one.Contract}
	if err := s.UKI(two.Head.Release, bytes.NewReader(two.UKI)); err != nil {
		t.Error(err)
	}
	for want, uki := range map[string][]byte{
		"version is 2 in release.json and 1":   one.UKI,
		"have not pinned the same release key": make(2, stranger).UKI,
		"EOF":                                  nil,
	} {
		if err := s.UKI(two.Head.Release, bytes.NewReader(uki)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	none := otatest.Make(t, otatest.Spec{Version: 2, Image: otatest.Image(4, 1, 0, 0)})
	if err := s.UKI(none.Head.Release, bytes.NewReader(none.UKI)); err == nil || !strings.Contains(err.Error(), "only one of") {
		t.Errorf("a UKI without a key: %v", err)
	}
	// What the boot would refuse is not fetched.
	other := *one.Contract
	other.RootFileSystem = "btrfs"
	if err := (&Self{Running: &other}).UKI(two.Head.Release, bytes.NewReader(two.UKI)); err == nil || !strings.Contains(err.Error(), "wants ext4 on the root partition, which has btrfs") {
		t.Errorf("another file system: %v", err)
	}
}

// The worker is told all of it.
func TestSelfIsEncodable(t *testing.T) {
	r := otatest.Make(t, otatest.Spec{Version: 1, Key: otatest.NewKey(t), Image: otatest.Image(4, 1, 0, 0)})
	s := &Self{
		Running: r.Contract, Floor: 3, Failed: map[contract.Version]string{7: "why"}, Machine: []byte("m"), Channel: manifest.Beta, Impatient: true,
		Signed: settings.Always, Seen: Seen{5, true, false}, SlotSize: 1, TreeSize: 2, Now: otatest.Date,
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	got := new(Self)
	if err := json.Unmarshal(text, got); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v", got, err)
	}
}

// FAULTS 112 (R7): beta follows the newer of its own release and the more tried ones
func TestChoose(t *testing.T) {
	machine := func() *Self {
		return &Self{Running: &contract.Contract{ImageID: "os", Version: 1}, Channel: manifest.Beta, Machine: []byte("m"), Failed: map[contract.Version]string{}}
	}
	none := manifest.Entry{Version: 3, Limited: true}
	for name, c := range map[string]struct {
		change  func(s *Self)
		m       manifest.Manifest
		version contract.Version
		verdict Verdict
		reason  string
	}{
		"a hotfix":                                     {func(*Self) {}, manifest.Manifest{Stable: manifest.Entry{Version: 3}, Beta: manifest.Entry{Version: 2}}, 3, Take, "it comes from channel stable, which is ahead of beta"},
		"its own":                                      {func(*Self) {}, manifest.Manifest{Stable: manifest.Entry{Version: 2}, Beta: manifest.Entry{Version: 3}}, 3, Take, "version 3 is newer than 1"},
		"a hotfix for others first":                    {func(*Self) {}, manifest.Manifest{Stable: none, Beta: manifest.Entry{Version: 2}}, 2, Take, "newer"},
		"a hotfix at once":                             {func(s *Self) { s.Impatient = true }, manifest.Manifest{Stable: none, Beta: manifest.Entry{Version: 2}}, 3, Take, "newer"},
		"a hotfix that has failed here":                {func(s *Self) { s.Failed[3] = "it hung" }, manifest.Manifest{Stable: manifest.Entry{Version: 3}, Beta: manifest.Entry{Version: 2}}, 2, Take, "newer"},
		"all have failed here":                         {func(s *Self) { s.Failed[3], s.Failed[2] = "it hung", "it hung" }, manifest.Manifest{Stable: manifest.Entry{Version: 3}, Beta: manifest.Entry{Version: 2}}, 3, Spent, "ota retry 3"},
		"the older one runs, others wait":              {func(s *Self) { s.Running.Version = 2 }, manifest.Manifest{Stable: none, Beta: manifest.Entry{Version: 2}}, 3, Later, "0 %"},
		"by a step":                                    {func(*Self) {}, manifest.Manifest{Stable: manifest.Entry{Version: 9}, Steps: []contract.Version{3, 5}}, 3, Take, "version 9 is offered, and this machine needs this one first"},
		"the second step":                              {func(s *Self) { s.Running.Version = 3 }, manifest.Manifest{Stable: manifest.Entry{Version: 9}, Steps: []contract.Version{3, 5}}, 5, Take, "version 9 is offered"},
		"behind the steps":                             {func(s *Self) { s.Running.Version = 5 }, manifest.Manifest{Stable: manifest.Entry{Version: 9}, Steps: []contract.Version{3, 5}}, 9, Take, "version 9 is newer than 5, which is running"},
		"a step is the end":                            {func(*Self) {}, manifest.Manifest{Stable: manifest.Entry{Version: 3}, Steps: []contract.Version{3, 5}}, 3, Take, "version 3 is newer than 1, which is running"},
		"a step that has failed here":                  {func(s *Self) { s.Failed[3] = "it hung" }, manifest.Manifest{Stable: manifest.Entry{Version: 9}, Steps: []contract.Version{3}}, 3, Spent, "`ota retry 3` takes it off the list. It is needed on the way to version 9"},
		"a step that has failed, and an older release": {func(s *Self) { s.Failed[3] = "it hung" }, manifest.Manifest{Stable: manifest.Entry{Version: 2}, Beta: manifest.Entry{Version: 9}, Steps: []contract.Version{3}}, 2, Take, "newer"},
		"a step before it is our turn":                 {func(*Self) {}, manifest.Manifest{Stable: manifest.Entry{Version: 9, Limited: true}, Steps: []contract.Version{3}}, 9, Later, "0 %"},
		"stable ignores beta":                          {func(s *Self) { s.Channel = manifest.Stable }, manifest.Manifest{Stable: manifest.Entry{Version: 1}, Beta: manifest.Entry{Version: 2}}, 1, Current, "is running"},
	} {
		s := machine()
		c.change(s)
		o, d, err := s.Choose(&c.m)
		if err != nil || o.Version != c.version || d.Verdict != c.verdict || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %v, %+v, %v", name, o, d, err)
		}
	}
}
