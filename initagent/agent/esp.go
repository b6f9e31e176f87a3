package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/systems"
)

// countVariable is where the boot manager says that it has counted a start of a trial.
const countVariable = "LoaderBootCountPath"

func (a *Agent) readESP(read func(files fs.FS) error) error { return a.ESP.Read(a.disk, read) }

func (a *Agent) writeESP(write func(dir hw.ESPDir) error) error { return a.ESP.Write(a.disk, write) }

// readFile reads a file of the ESP, of at most limit bytes.
func readFile(files fs.FS, name string, limit int64) ([]byte, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", name, limit)
	}
	return b, nil
}

// isOurs reports whether a UKI is the running one.
func (a *Agent) isOurs(n bls.Name) bool {
	return n.ImageID == a.contract.ImageID && n.Version == a.contract.Version
}

// ukiNames are the names of the UKIs on the ESP that follow our rules.
func (a *Agent) ukiNames() (names []bls.Name, err error) {
	err = a.readESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, bls.Directory)
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil {
				names = append(names, n)
			}
		}
		return err
	})
	return names, err
}

// runningUKI reads the file that this boot was started from, or, where that is not
// known, one of its version.
func (a *Agent) runningUKI() (image []byte, err error) {
	booted, known := a.bootedName()
	err = a.readESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, bls.Directory)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil && a.isOurs(n) && (!known || n == booted) {
				image, err = readFile(files, path.Join(bls.Directory, e.Name()), enroll.MaxEFIFile)
				return err
			}
		}
		return fmt.Errorf("the ESP has no UKI of %s %s", a.contract.ImageID, a.contract.Version)
	})
	return image, err
}

// countTry counts a start of a trial that nobody has counted: the boot manager cannot
// rename the file, or the firmware started it without one. Such a trial would never be
// over. It is the rename that the boot manager makes, by another driver; cut before it,
// the start is not counted, and cut in it, hw.ESPDir says what is left. Where it fails the
// system starts all the same, and what that means is said.
//
// Where somebody had stored something under the variable's name, the boot manager could
// not say whether it has counted. The variable is deleted now and the next start is an
// ordinary one, so this one is not counted: a trial would lose two tries at once. Where it
// cannot be deleted, a trial that loses two is better than one that never ends.
func (a *Agent) countTry() error {
	counted, err := a.Firmware.LoaderString(countVariable)
	if err != nil || counted != "" || a.countDeleted {
		return nil
	}
	if a.names, err = a.ukiNames(); err != nil {
		return nil // which is said where it matters
	}
	booted, known := a.bootedName()
	if !known || !booted.Trial() {
		return nil
	}
	tried := booted.Tried()
	err = a.writeESP(func(dir hw.ESPDir) error { return dir.Rename(systems.Path(booted), systems.Path(tried)) })
	if err != nil {
		a.Log.Say("WARNING: this start of %s was not counted, so that the trial does not end by itself (%v): `esp-rebuild` at the recovery console makes the ESP again", booted, err)
		return nil
	}
	a.Log.Say("the boot manager has not counted this start of a trial: it is %s now", tried)
	return nil
}

// condemn takes the tries away of the file that this boot was started from, so
// that the boot manager prefers another from now on. Where that file is not
// known, every file of this version loses them.
func (a *Agent) condemn() error {
	these := slices.DeleteFunc(slices.Clone(a.names), func(n bls.Name) bool { return !a.isOurs(n) })
	if booted, known := a.bootedName(); known {
		these = []bls.Name{booted}
	}
	these = slices.DeleteFunc(these, bls.Name.Bad)
	if len(these) == 0 {
		return nil // its last try was counted when it was started
	}
	return a.writeESP(func(dir hw.ESPDir) error {
		var errs []error
		for _, n := range these {
			err := systems.Condemn(dir, n)
			if err == nil {
				a.Log.Say("%s has no tries left", n.Condemned())
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}
