package main

import (
	"context"
	"crypto/rand"
	"errors"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/install/screen"
)

// installByScreen lets the disk be chosen from a list.
func (c command) installByScreen(ctx context.Context, from string, o installFlags) error {
	b := &screenBackend{command: c, from: from, flags: o, machine: install.Running()}
	source, closeSource, err := openSource(ctx, from, o)
	if err != nil {
		return words.Errorf(words.InOnThePath, from, err)
	}
	b.source, b.flags.note = source, nil // on the screen it would be in the way
	err = screen.Run(ctx, b, nil)
	return errors.Join(err, closeSource())
}

// screenBackend is what the text interface shows and starts.
type screenBackend struct {
	command
	from    string
	flags   installFlags
	machine install.Linux
	source  *install.Source // for what it says of itself; its image is not read
	noEntry error           // why the firmware got no boot entry
	notes   words.List      // what of the firmware's was passed over
}

// Release implements screen.Backend.
func (b *screenBackend) Release() string {
	r := b.source.ESP.Release
	return r.ImageID + " " + r.Version.String()
}

// Disks implements screen.Backend.
func (b *screenBackend) Disks() ([]install.Disk, error) { return b.machine.Disks() }

// Plan implements screen.Backend.
func (b *screenBackend) Plan(d install.Disk, chosen install.Choice) (*install.Plan, error) {
	ids, err := install.RandomIDs(rand.Reader)
	if err != nil {
		return nil, err
	}
	now, err := target(b.machine, d.Path, b.from) // it may have been mounted meanwhile
	if err == nil {
		err = d.Same(now)
	}
	if err != nil {
		return nil, err
	}
	choice := b.flags.choice()
	choice.KeepRoot = choice.KeepRoot || chosen.KeepRoot
	choice.FreeSpace = choice.FreeSpace || chosen.FreeSpace
	choice.LetOthersStart = choice.LetOthersStart || chosen.LetOthersStart
	facts, err := factsWith(b.machine)
	if err != nil {
		return nil, err
	}
	return install.NewPlan(b.source, now, facts, ids, choice), nil
}

// Choices implements screen.Backend. What was answered before, for a disk that somebody has gone back
// from, is gone; answers of a file stay.
func (b *screenBackend) Choices(chosen install.Choice) *questions.Choices {
	if b.flags.setup == "" {
		b.flags.answers, b.source.ESP.Setup = nil, nil
	}
	choice := b.flags.choice()
	choice.KeepRoot = choice.KeepRoot || chosen.KeepRoot
	if !b.source.Asks(choice) {
		return nil
	}
	return b.source.Choices
}

// SetUp implements screen.Backend. Answers of a file stay.
func (b *screenBackend) SetUp(a *answers.Answers) (err error) {
	switch {
	case b.flags.setup != "":
		return nil
	case a == nil:
		b.flags.answers = nil
	default:
		if b.flags.answers, err = install.SetupFile(a, rand.Reader); err != nil {
			return err
		}
	}
	b.source.ESP.Setup = b.flags.answers
	return nil
}

// Install implements screen.Backend. Each installation reads the source again.
func (b *screenBackend) Install(ctx context.Context, p *install.Plan, progress install.Progress) (err error) {
	source, closeSource, err := openSource(ctx, b.from, b.flags)
	if err != nil {
		return words.Errorf(words.InOnThePath, b.from, err)
	}
	defer func() { err = errors.Join(err, closeSource()) }()
	if err := b.write(ctx, p, source, progress); err != nil {
		return err
	}
	if b.flags.another || b.flags.no {
		return nil
	}
	progress(words.InStepEntry, 0, 0)
	b.notes, b.noEntry = addBootEntry(b.machine, p)
	return nil
}

// Begin implements screen.Backend. An installer stick has no language but the one that process 1
// says, and a keyboard that is nobody else's matter.
func (b *screenBackend) Begin() screen.Begin {
	l, known := b.language()
	begin := screen.Begin{Language: l, Ask: !known || b.getenv(stickKeymap) != ""}
	if b.getenv("TERM") == "linux" {
		begin.Keymap, begin.SetKeymap = b.getenv(stickKeymap), install.SetKeymap
	}
	return begin
}

// Next implements screen.Backend.
func (b *screenBackend) Next(p *install.Plan) words.List {
	return append(append(p.Next(), b.notes...), withoutEntry(p, b.noEntry)...)
}
