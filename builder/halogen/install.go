package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/files"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/release"
)

const installSummary = `usage: halogen install --disk DISK [OPTION]... SOURCE
       halogen install [OPTION]... [SOURCE]
       halogen install --list

Installs a release on a disk, from any Linux that was started by UEFI, without
any tool of it. SOURCE is a release archive, a directory that 'halogen build'
left, or the address of an image's directory on a release server; by default the
directory 'release' beside the program, as an installer stick has it. Without
--disk, on a terminal, the disk is chosen from a list.

Everything on the disk is lost. The program shows what it found and asks for
the disk's name to be typed; --yes with the disk's serial number does without.
Nothing is written before all checks have passed, and the partition table is
written last: an installation that was interrupted leaves a disk that does not
start and can be installed again.

On a terminal it asks what the machine's first start would ask, where the release
asks that: language, keyboard, time zone, name, updates, an account. Each question
can be left for the first start (Tab on the full screen, . at a line). The answers go
to the EFI system partition, a password as a yescrypt hash, and the first start takes
them; a wireless network is asked for there. --setup brings the answers in a file.

It asks in the language that LANG names, where it has that: English or German. A
stick asks for the language and the keyboard first. What programs read is English.

--free-space installs into the largest free space of a disk that has other
systems: its partitions stay as they are, and the new system gets an EFI system
partition of its own. An installation that was interrupted leaves the disk as it
was. What will no longer start once the firmware holds this machine's own keys is
said before anything is written; have BitLocker's recovery key at hand.

--let-others-start lets Windows, and other systems whose loader Microsoft has
signed, go on starting: the firmware then gets Microsoft's certificates beside this
machine's own keys. Anybody's program with such a signature starts then, from a
stick as well; where a TPM tells what was started, your data stays closed to
it. The first start asks for it once more.
On a terminal the program asks where there are other systems.

--keep-root keeps the root partition of a HalogenOS that is on the disk, with
everything that was ever stored there: nothing is written to it, however the
installation ends. It opens with its recovery key at the first start, which
then gives the firmware the machine's own keys again. So the firmware must be
in Setup Mode, as for a new machine.
`

type installFlags struct {
	disk, key, channel, yes, setup        string
	answers                               []byte // for the first start, of the file that setup names
	list, dryRun, json, another, no, keep bool
	free, others                          bool
	reader                                readerFlags
	note                                  func(string) // why a request is made again; nil: nobody is told
}

func (c command) install(ctx context.Context, args []string) error {
	var o installFlags
	f := flag.NewFlagSet("install", flag.ContinueOnError)
	f.StringVar(&o.disk, "disk", "", "the `DISK` to install to, such as /dev/nvme0n1")
	f.StringVar(&o.key, "key", "", "`FILE` with the distributor's OpenPGP public key; a release that it has not signed is refused, and so is a directory without release.json.pgp")
	f.StringVar(&o.channel, "channel", "stable", "which `CHANNEL` of a server to install: stable, beta or alpha")
	f.StringVar(&o.setup, "setup", "", "`FILE` with answers for the machine's first start, as setup.json(5) has it: nobody is asked then. 'halogen setup --check FILE' tries it")
	f.StringVar(&o.yes, "yes", "", "do not ask: the disk's `SERIAL` number stands for its owner's consent to lose what is on it")
	f.BoolVar(&o.list, "list", false, "list the disks and end")
	f.BoolVar(&o.dryRun, "dry-run", false, "show the plan and write nothing")
	f.BoolVar(&o.keep, "keep-root", false, "keep the root partition of the HalogenOS on the disk; its recovery key is asked for at the first start")
	f.BoolVar(&o.free, "free-space", false, "use the disk's largest free space, and leave its partitions as they are")
	f.BoolVar(&o.others, "let-others-start", false, "let Windows, and other systems that Microsoft has signed, go on starting with Secure Boot on, once the first start has asked for it again")
	f.BoolVar(&o.another, "other-machine", false, "the disk is for another machine: leave this one's firmware out of it")
	f.BoolVar(&o.no, "no-boot-entry", false, "leave the firmware's boot entries alone: the disk is found by its removable path")
	f.BoolVar(&o.json, "json", false, "print the disks or the plan in JSON on the standard output")
	o.reader.add(f)
	rest, err := c.parse(f, args, installSummary)
	switch {
	case err != nil:
		return err
	case o.list && len(rest) == 0:
		return c.listDisks(o.json)
	case o.free && o.keep:
		return c.misused(f, "--keep-root erases the rest of the disk, and --free-space nothing: give one of them")
	case len(rest) > 1:
		return c.misused(f, "want one SOURCE, have %d", len(rest))
	case o.disk == "" && !o.asks():
		return c.misused(f, "--disk is missing")
	}
	o.note = func(text string) { fmt.Fprintln(c.stderr, text) }
	if o.setup != "" {
		if o.answers, _, err = readAnswers(o.setup); err != nil {
			return err
		}
	}
	from, err := c.sourceOr(rest)
	if err != nil {
		return err
	}
	if o.asks() {
		c.speaks, _ = c.language()
	}
	if o.disk == "" {
		return c.installByScreen(ctx, from, o)
	}
	return inLanguage(c.speaks, c.installFrom(ctx, install.Running(), from, o))
}

// asks reports whether somebody is there to be asked, in their language. What a program reads is
// English.
func (o installFlags) asks() bool {
	return o.yes == "" && !o.json && !o.dryRun && isTerminal(os.Stdin)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// sourceOr returns the source that was named, or the one beside the program.
func (c command) sourceOr(rest []string) (string, error) {
	if len(rest) == 1 {
		return rest[0], nil
	}
	self, err := c.executable()
	if err != nil {
		return "", fmt.Errorf("find the directory of the program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), "release")
	if _, err := os.Stat(beside); err != nil {
		return "", fmt.Errorf("no SOURCE was named, and there is none beside the program (%w): name a release, its directory or its address", err)
	}
	return beside, nil
}

func (c command) listDisks(asJSON bool) error {
	disks, err := install.Running().Disks()
	if err != nil {
		return err
	}
	if asJSON {
		return c.printJSON(disks)
	}
	for _, d := range disks {
		fmt.Fprintf(c.stdout, "%-14s %7.1f GB  %s %s\n", d.Path, float64(d.Size())/1e9, d.Model, d.Serial)
		if len(d.Systems) > 0 {
			fmt.Fprintf(c.stdout, "    systems: %s; the largest free space has %d MiB\n", install.Names(d.Systems), d.Free>>20)
		}
		for _, line := range append(d.Uses, d.Contents...) {
			fmt.Fprintf(c.stdout, "    %s\n", line)
		}
	}
	return nil
}

func (c command) installFrom(ctx context.Context, machine install.Linux, from string, o installFlags) (err error) {
	source, closeSource, err := openSource(ctx, from, o)
	if err != nil {
		return words.Errorf(words.InOnThePath, from, err)
	}
	defer func() { err = errors.Join(err, closeSource()) }()
	disk, err := target(machine, o.disk, from)
	if err != nil {
		return err
	}
	facts, err := factsWith(machine)
	if err != nil {
		return err
	}
	plan, err := c.planWith(ctx, source, disk, facts, &o)
	if err != nil {
		return err
	}
	if o.json {
		if err := c.printJSON(plan); err != nil {
			return err
		}
	} else {
		c.showPlan(plan)
	}
	if err := plan.Err(true); err != nil || o.dryRun {
		return err
	}
	if err := c.consent(plan, o.yes); err != nil {
		return err
	}
	if err := c.write(ctx, plan, source, c.rate()); err != nil {
		return err
	}
	if !o.another && !o.no {
		c.bootEntry(machine, plan)
	}
	if !o.json {
		c.nextSteps(plan)
	}
	return nil
}

// planWith plans, once somebody has been asked what there is a choice of, where somebody can be.
func (c command) planWith(ctx context.Context, source *install.Source, disk install.Disk, facts install.Facts, o *installFlags) (*install.Plan, error) {
	ids, err := install.RandomIDs(rand.Reader)
	if err != nil {
		return nil, err
	}
	plan := func() *install.Plan { return install.NewPlan(source, disk, facts, ids, o.choice()) }
	if !o.asks() {
		return plan(), nil
	}
	if !o.keep && !o.free {
		if err := c.whatStays(disk, o); err != nil {
			return nil, err
		}
	}
	p := plan()
	if p.AsksOthers && p.Err(true) == nil {
		if o.others, err = c.othersStart(p.Staying()); err != nil {
			return nil, err
		}
		p = plan()
	}
	if p.Err(true) != nil {
		return p, nil
	}
	if err := c.setUp(ctx, source, o); err != nil {
		return nil, err
	}
	return plan(), nil
}

// bootEntry has the firmware start what was installed. Where it does not take the entry, the
// installation is good all the same, and it is said what to do.
func (c command) bootEntry(machine install.Linux, plan *install.Plan) {
	notes, err := addBootEntry(machine, plan)
	for _, note := range append(notes, withoutEntry(plan, err)...) {
		fmt.Fprintln(c.stderr, c.speaks.Line(note))
	}
}

// withoutEntry says what to do where the firmware got no boot entry, and why it did not; nothing
// where it has one.
func withoutEntry(p *install.Plan, err error) words.List {
	if err == nil {
		return nil
	}
	says := words.List{words.Linef(words.InNoBootEntry, err)}
	if p.Choice.FreeSpace {
		says = append(says, words.Linef(words.InNoBootEntryBeside, layout.Manager))
	}
	return says
}

// factsWith are the machine's facts, with the systems that are on its disks.
func factsWith(machine install.Linux) (install.Facts, error) {
	facts := machine.Facts()
	var err error
	facts.Systems, err = machine.Systems()
	return facts, err
}

// target looks at the disk to install to.
func target(machine install.Linux, path, from string) (install.Disk, error) {
	d, err := machine.Disk(path)
	if err == nil && machine.Holds(path, from) {
		d.Uses = append(d.Uses, words.Linef(words.InReleaseOnIt, from))
	}
	return d, err
}

func (o installFlags) choice() install.Choice {
	return install.Choice{OtherMachine: o.another, KeepRoot: o.keep, FreeSpace: o.free, LetOthersStart: o.others}
}

// openSource opens what is installed, with the answers for the first start.
func openSource(ctx context.Context, from string, o installFlags) (*install.Source, func() error, error) {
	s, done, err := openRelease(ctx, from, o)
	if err != nil {
		return nil, nil, err
	}
	s.ESP.Setup = o.answers
	return s, done, nil
}

// openRelease tells by its look what it is.
func openRelease(ctx context.Context, from string, o installFlags) (*install.Source, func() error, error) {
	key, err := readKey(o.key)
	if err != nil {
		return nil, nil, err
	}
	if strings.HasPrefix(from, "https://") || strings.HasPrefix(from, "http://") {
		return openServer(ctx, from, o, key)
	}
	info, err := os.Stat(from)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		return openDirectory(from, key)
	}
	f, err := os.Open(from)
	if err != nil {
		return nil, nil, err
	}
	return opened(ctx, f, key)
}

func openDirectory(dir string, key *pgp.Key) (s *install.Source, done func() error, err error) {
	if key == nil {
		s, err = install.FromDirectory(dir)
	} else {
		s, err = install.FromSignedDirectory(dir, key, time.Now())
	}
	if err != nil {
		return nil, nil, err
	}
	return s, s.Close, nil
}

func opened(ctx context.Context, packed io.ReadCloser, key *pgp.Key) (*install.Source, func() error, error) {
	s, err := install.FromArchive(ctx, packed, key, time.Now())
	if err != nil {
		return nil, nil, errors.Join(err, packed.Close())
	}
	return s, func() error { return errors.Join(s.Close(), packed.Close()) }, nil
}

func readKey(name string) (*pgp.Key, error) {
	if name == "" {
		return nil, nil
	}
	text, err := files.Read(name, pgp.MaxKey)
	if err != nil {
		return nil, err
	}
	key, err := pgp.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

func openServer(ctx context.Context, from string, o installFlags, key *pgp.Key) (*install.Source, func() error, error) {
	reader, err := o.reader.options(o.note)
	if err != nil {
		return nil, nil, err
	}
	web, err := release.NewWeb(from, reader)
	if err != nil {
		return nil, nil, err
	}
	channel, err := manifest.ParseChannel(o.channel)
	if err != nil {
		return nil, nil, err
	}
	offer, err := release.Offered(ctx, web, channel, key, time.Now())
	if err != nil {
		return nil, nil, err
	}
	packed, err := web.Open(ctx, manifest.ArchiveName(offer.Version))
	if err != nil {
		return nil, nil, err
	}
	s, done, err := opened(ctx, packed, offer.Key)
	if err != nil {
		return nil, nil, err
	}
	if err := offer.Is(s.ESP.Release); err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return s, done, nil
}

func (c command) showPlan(p *install.Plan) {
	d := p.Disk
	say := func(format string, args ...any) { fmt.Fprint(c.stdout, c.speaks.Say(format, args...)) }
	say(words.InPlanInstall, p.Release.ImageID, p.Release.Version, p.Release.ImageSize>>20)
	say(words.InPlanOn, d.Path, d.Model, d.Serial, float64(d.Size())/1e9, d.SectorSize)
	if !p.Choice.OtherMachine {
		say(words.InPlanMachine, p.Machine.Line())
	}
	for _, part := range p.Partitions {
		text := words.InPlanMake
		if part.Kept {
			text = words.InPlanKeep
		}
		say(text, part.Number, part.Label, part.Size>>20)
	}
	for _, f := range p.Findings {
		fmt.Fprintf(c.stdout, "%-8s %s\n", c.speaks.Text(f.Word()), c.speaks.Line(f.Text))
	}
}

func (c command) write(ctx context.Context, p *install.Plan, s *install.Source, progress install.Progress) (err error) {
	device, err := install.Running().Open(p.Disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	if err := p.Install(ctx, device, s, progress); err != nil {
		if ctx.Err() != nil { // that it was interrupted is all that will be said
			fmt.Fprintf(c.stderr, "%s\n", c.speaks.Line(p.Unfinished()))
		}
		return words.Errorf(words.InUnfinished, err, p.Unfinished())
	}
	if err := device.Reread(); err != nil {
		fmt.Fprintln(c.stderr, c.speaks.Say(words.InOldPartitions, p.Disk.Path, err))
	}
	return nil
}

// rate prints how far it has come, at most once a second.
func (c command) rate() install.Progress {
	var what string
	var began, last time.Time
	return func(now string, done, total int64) {
		t := time.Now()
		if now != what {
			what, began, last = now, t, time.Time{}
		}
		if done < total && t.Sub(last) < time.Second {
			return
		}
		last = t
		left := ""
		if spent := t.Sub(began); done > 0 && done < total {
			left = c.speaks.Say(words.InRateLeft, (time.Duration(float64(spent) * float64(total-done) / float64(done))).Round(time.Second))
		}
		if total == 0 {
			fmt.Fprintln(c.stderr, c.speaks.Text(now))
			return
		}
		fmt.Fprintln(c.stderr, c.speaks.Say(words.InRate, words.Fixed(now), done*100/total, total>>20, left))
	}
}

// addBootEntry names the disk in the firmware's boot order. Without an entry the
// firmware finds the disk by its removable path, on a disk that has no other system. The notes say what of the firmware's
// was passed over.
func addBootEntry(l install.Linux, p *install.Plan) (notes words.List, err error) {
	esp, err := layout.FindESP(p.Table, p.IDs.ESP)
	if err != nil {
		return nil, err
	}
	return l.AddBootEntry(bootoption.Encode("HalogenOS", esp.Number, esp.First, esp.Last-esp.First+1, esp.UUID, `\`+strings.ReplaceAll(layout.Manager, "/", `\`)))
}

func (c command) nextSteps(p *install.Plan) {
	fmt.Fprintf(c.stdout, "\n%s\n", c.speaks.Say(words.InWhatNext, p.Release.ImageID, p.Disk.Path))
	for i, s := range p.Next() {
		fmt.Fprintf(c.stdout, "  %d. %s\n", i+1, c.speaks.Line(s))
	}
	fmt.Fprintln(c.stdout, c.speaks.Text(words.InKeepThese))
	for _, s := range p.Keep() {
		fmt.Fprintf(c.stdout, "  - %s\n", c.speaks.Line(s))
	}
}
