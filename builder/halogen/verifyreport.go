package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	description "halogenos.internal/boot/release"
	"halogenos.internal/builder/files"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/release"
)

const verifyReportSummary = `usage: halogen verify-report FILE --release URL|DIR --key NAME|--save-key FILE [OPTION]...

Judges what 'halogenctl boot-report' printed on a machine: whether its TPM has signed
that it started a release of yours, no other program, and no driver but what
--driver names, under keys of its own. It says what does not fit, and fails then. Ask for the report with a nonce that nobody could
know before, and say it with --nonce: else the report may be an old one.

--release is an image's directory on a server, URL or DIR, whose channel names the
release that the machine should run, or --version does; a server's root; or what
'halogen build' filled. The machine is known by its attestation key: --key has the name
that this command shows, and --pk the hash of the firmware's PK, without which it says
only that the firmware's keys call themselves the machine's own. With --save-key the
first good report is believed, and its key's name and PK's hash are put into FILE, which
from then on must be the ones. A key proves that a TPM
holds it to nobody who has not seen the machine: anyone who could answer in its place on
the first day is that machine from then on.

What the TPM proves: the boot manager, the UKI, and so the whole system image, the EFI
drivers and option ROMs, what was added to the command line, and the state and keys of
Secure Boot. The firmware itself is believed: PCR 0 is shown, and is another when the
firmware is, be it by an update. The slot, the floor
and the time are the word of root there, and what has happened since the
start is in no report. Root can measure more into PCR 7: another entry of the db that
was measured as what let something start.
`

// verifyFlags are the options of verify-report as they are given.
type verifyFlags struct {
	place, pinned, nonce, key, pk, saved, channel, version string
	programs, drivers                                      digests
	json                                                   bool
	reader                                                 readerFlags
}

// digests are the hashes of an option that may be given again.
type digests []pcr.Digest

func (d *digests) String() string { return "" }

// Set implements flag.Value.
func (d *digests) Set(text string) error {
	one, err := pcr.ParseDigest(text)
	*d = append(*d, one)
	return err
}

func (c command) verifyReport(ctx context.Context, args []string) error {
	var v verifyFlags
	f := flag.NewFlagSet("verify-report", flag.ContinueOnError)
	f.StringVar(&v.place, "release", "", "server, image's directory on one, or build that the machine should run: `URL|DIR`")
	f.StringVar(&v.version, "version", "", "`VERSION` that the machine should run, of a server")
	f.StringVar(&v.channel, "channel", string(manifest.Stable), "`CHANNEL` that names it otherwise: stable, beta or alpha")
	f.StringVar(&v.pinned, "pinned", "", "public release key `FILE` that machines have pinned")
	f.StringVar(&v.nonce, "nonce", "", "`HEX` that the report must answer")
	f.StringVar(&v.key, "key", "", "`NAME` of the machine's attestation key, 68 hexadecimal digits")
	f.StringVar(&v.pk, "pk", "", "SHA-256 of the firmware's PK as this command shows it, with --key: `HASH`")
	f.StringVar(&v.saved, "save-key", "", "`FILE` with that name and PK's hash; written by the first good report")
	f.Var(&v.programs, "program", "Authenticode `HASH` of an EFI program that may have run before the UKI, such as the boot manager of a newer release; may be given again")
	f.Var(&v.drivers, "driver", "`HASH` of an EFI driver or option ROM that belongs to the machine; may be given again")
	f.BoolVar(&v.json, "json", false, "print what the report says in JSON")
	v.reader.add(f)
	rest, err := c.parse(f, args, verifyReportSummary)
	if err != nil {
		return err
	}
	switch {
	case len(rest) != 1:
		return c.misused(f, "want one report, have %d", len(rest))
	case v.place == "":
		return c.misused(f, "want --release, which the machine should run")
	case (v.key == "") == (v.saved == ""):
		return c.misused(f, "want --key or --save-key: without the machine's key anybody can have made the report")
	case v.pk != "" && v.key == "":
		return c.misused(f, "--pk goes with --key: --save-key keeps PK's hash itself")
	}
	nonce, err := hex.DecodeString(v.nonce)
	if err != nil {
		return c.misused(f, "--nonce: want hexadecimal digits")
	}
	if v.nonce == "" && given(f, "nonce") {
		return c.misused(f, "--nonce is empty, which an old report would answer too: has the command failed that should make it?")
	}
	text, err := files.Read(rest[0], bootreport.MaxSize)
	if err != nil {
		return err
	}
	r, err := bootreport.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", rest[0], err)
	}
	return c.judgeReport(ctx, f, r, v, nonce)
}

// given reports whether an option was named, be it with an empty value.
func given(f *flag.FlagSet, name string) (yes bool) {
	f.Visit(func(o *flag.Flag) { yes = yes || o.Name == name })
	return yes
}

// judgeReport compares a report with all that is asked for.
func (c command) judgeReport(ctx context.Context, f *flag.FlagSet, r *bootreport.Report, v verifyFlags, nonce []byte) error {
	note := image.NewProgress(c.stderr).Note
	known, owner, err := v.machine()
	if err != nil {
		return err
	}
	want, err := c.expected(ctx, f, r, v, note)
	if err != nil {
		return err
	}
	want.Key, want.Owner = known, owner
	want.Programs, want.Drivers = v.programs, v.drivers
	if v.nonce != "" {
		want.Nonce = nonce
	} else {
		note("WARNING: without --nonce the report may be an old one")
	}
	found, err := bootreport.Verify(r, want)
	if err != nil {
		return fmt.Errorf("the report does not prove that the machine runs release %s of %s:\n%w", want.Release.Version, want.Release.ImageID, err)
	}
	if known == nil {
		if err := saveName(v.saved, found); err != nil {
			return err
		}
		note("this machine's first report: its key and PK are believed from now on, and saved in %s", v.saved)
	}
	if v.json {
		return c.printJSON(found)
	}
	_, err = c.stdout.Write(showFinding(found))
	return err
}

// machine is the key that is known, nil where the first report is to be believed, and
// PK's hash where that is known.
func (v verifyFlags) machine() (known *policy.Name, owner string, err error) {
	text, from := []byte(v.key+" "+v.pk), "--key"
	if v.saved != "" {
		from = v.saved
		text, err = files.Read(v.saved, 1<<10)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, "", nil
		}
		if err != nil {
			return nil, "", err
		}
	}
	name, owner, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	known = new(policy.Name)
	if err := known.UnmarshalText([]byte(name)); err != nil {
		return nil, "", fmt.Errorf("%s: want the name of an attestation key as this command shows it: %w", from, err)
	}
	return known, owner, nil
}

// saveName keeps the name of the key that was believed, and PK's hash. A file that another report has
// made in the meantime stays.
func saveName(path string, found *bootreport.Finding) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(found.Machine.String() + " " + found.Owner() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path)) // else half a name would stay
	}
	return nil
}

// expected reads the release that the machine should run.
func (c command) expected(ctx context.Context, f *flag.FlagSet, r *bootreport.Report, v verifyFlags, note func(string, ...any)) (want bootreport.Want, err error) {
	o := release.ExpectOptions{Now: time.Now(), Note: note}
	if o.Channel, err = manifest.ParseChannel(v.channel); err != nil {
		return want, c.misused(f, "--channel: %v", err)
	}
	if v.version != "" {
		if o.Version, err = contract.ParseVersion(v.version); err != nil {
			return want, c.misused(f, "--version: %v", err)
		}
	}
	isURL := strings.Contains(v.place, "://")
	if _, err := os.Stat(filepath.Join(v.place, description.FileName)); err == nil && !isURL {
		if v.version != "" || v.pinned != "" {
			return want, c.misused(f, "--version and --pinned go with a server, and %s is a build", v.place)
		}
		return release.ExpectBuild(v.place)
	}
	if o.Key, err = readKey(v.pinned); err != nil {
		return want, err
	}
	if !isURL {
		// Which image is meant is the machine's word, and compared with the release later.
		directory, err := oneImage(v.place, r.Statement.Arch+"/"+r.Statement.ImageID)
		if err != nil {
			return want, err
		}
		return release.ExpectPublished(ctx, directory, o)
	}
	reader, err := v.reader.options(func(text string) { note("%s", text) })
	if err != nil {
		return want, err
	}
	all, err := servers(v.place, reader)
	if err != nil {
		return want, err
	}
	return release.ExpectPublished(ctx, all[0], o)
}

// showFinding tells what a good report says.
func showFinding(f *bootreport.Finding) []byte {
	out := new(bytes.Buffer)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	under := "without Secure Boot"
	switch {
	case f.SecureBoot && f.SameOwner:
		under = "under its own keys"
	case f.SecureBoot:
		under = "under keys that call themselves its own"
	}
	fmt.Fprintf(out, "this machine runs release %s of %s for %s, %s, floor %d\n", f.Version, f.ImageID, f.Arch, under, f.Floor)
	line("machine", "%s", f.Machine)
	line("firmware", "PCR 0 is %s", f.Firmware)
	for _, d := range f.Drivers {
		line("driver", "%s, %s", d.SHA256, d.Text)
	}
	for _, l := range []struct {
		name string
		keys []bootreport.Key
	}{{"owner (PK)", f.PK}, {"KEK", f.KEK}, {"db", f.DB}, {"started by", f.Authorities}} {
		for _, k := range l.keys {
			line(l.name, "%s, SHA-256 %x", k.Subject, []byte(k.SHA256))
		}
	}
	for _, a := range f.Actions {
		line("firmware", "%q", a)
	}
	for _, e := range f.Extensions {
		line("extension", "%s, root hash %x", e.Name, []byte(e.RootHash))
	}
	fmt.Fprintln(out, "by the machine's own word:")
	trial := ""
	if f.Trial {
		trial = ", on trial"
	}
	line("slot", "%s%s", f.Slot, trial)
	if f.Reason != "" {
		line("because", "%q", f.Reason)
	}
	line("root opened", "%s", map[string]string{
		"tpm": "by the TPM", "key": "with the recovery key", "new": "made by this boot", "none": "no: there is none, and all data lies in memory",
	}[f.Root])
	line("epoch", "%d, and none below %d starts", f.Epoch, f.Floor)
	line("asked at", "%s UTC, in boot %s", time.Unix(f.Time, 0).UTC().Format(time.DateTime), f.BootID)
	return out.Bytes()
}
