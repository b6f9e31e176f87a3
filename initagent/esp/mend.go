package esp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

// Look compares the ESP with the index of its copies, and says in words what
// Mend has to see to. It reads names, lengths and the FAT: no content, until a
// week has passed, or the power was cut while the ESP was written to.
func (k *Keeper) Look(files fs.FS) ([]string, error) {
	s, err := look(files)
	if err != nil {
		return nil, err
	}
	x, err := k.Index()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []string{"there are no copies of it yet"}, nil
	case errors.Is(err, errIndex):
		return []string{err.Error()}, nil
	case err != nil:
		return nil, err
	}
	changes := k.changes(s, x)
	if why, due := k.whole(x, s.dirty); due {
		changes = append(changes, why)
	}
	return changes, nil
}

// A plan is what Mend does. It is made before anything is written.
type plan struct {
	survey *survey
	old    *Index // or nil
	next   Index
	forget []removal // names whose clusters may be another file's
	remove []removal
	puts   []restored
	healed []string // what was done, in words
	errs   []error  // of what cannot be mended
}

// removal is a name to be taken away, and what to say then.
type removal struct{ name, why string }

// restored is a file to be written.
type restored struct {
	name    string
	data    []byte
	replace bool // what has the name is damaged
	why     string
}

// Mend brings the ESP and its copies together, and says in words what it changed
// on the ESP: a file that is lost or damaged is put back from its copy, what cuts
// have left goes, and what has changed and is sound is copied.
//
// Copies come before the index that names them, and the index last. Cut anywhere,
// the index does not know the ESP as it is, and all of this is done again. A copy
// is never replaced by a file that is not sound.
func (k *Keeper) Mend(partition hw.ESP, disk hw.Disk) ([]string, error) {
	p := new(plan)
	err := partition.Read(disk, func(files fs.FS) (err error) {
		if p.survey, err = look(files); err == nil {
			err = k.plan(files, p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := p.repair(partition, disk); err != nil {
		return nil, err
	}
	if len(p.remove)+len(p.puts) > 0 {
		if err := partition.Write(disk, func(dir hw.ESPDir) error { k.apply(dir, p); return nil }); err != nil {
			p.errs = append(p.errs, err)
		}
	}
	p.undone()
	p.errs = append(p.errs, k.close(p))
	return p.healed, errors.Join(p.errs...)
}

// repair takes names away that the kernel must not, and frees what no file has.
func (p *plan) repair(partition hw.ESP, disk hw.Disk) error {
	var names []string
	for _, f := range p.forget {
		names = append(names, f.name)
	}
	freed, err := partition.Repair(disk, names)
	if err != nil {
		return fmt.Errorf("repair the ESP's file system: %w", err)
	}
	for _, f := range p.forget {
		p.say(f.why)
	}
	if freed > 0 {
		p.say(fmt.Sprintf("%d KiB that no file had were freed", freed>>10))
	}
	return nil
}

func (p *plan) say(done string) {
	if done != "" {
		p.healed = append(p.healed, done)
	}
}

// close drops the copies of what is no longer kept, and writes the index.
func (k *Keeper) close(p *plan) error {
	p.next.Format, p.next.Dirty = indexVersion, p.survey.dirty
	if p.next.Checked = k.Now.UTC(); len(p.puts) > 0 {
		p.next.Checked = time.Time{} // what could not be put back is tried again
	}
	for name := range p.survey.shared {
		if p.next.get(name) != nil {
			p.next.Tangled = append(p.next.Tangled, name)
		}
	}
	if err := k.writeIndex(&p.next); err != nil {
		return err
	}
	if p.old == nil {
		return nil
	}
	for _, c := range p.old.Copies {
		if now := p.next.get(c.Name); now == nil || now.Damaged {
			if err := k.Store.Remove(k.copyPath(c.Name)); err != nil {
				return fmt.Errorf("remove the copy of %s: %w", c.Name, err)
			}
		}
	}
	return nil
}

// plan reads all files of ours, and writes nothing but copies.
func (k *Keeper) plan(files fs.FS, p *plan) error {
	if err := k.Store.MakeDirectory(k.Directory, 0o700); err != nil {
		return err
	}
	x, err := k.Index()
	switch {
	case err == nil:
		p.old = x
	case errors.Is(err, errIndex):
		k.Say("%v: the copies are made again", err)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, name := range p.survey.strays(k) {
		p.drop(name, name+" was left behind by a power cut, and is removed")
	}
	for _, name := range k.names(p) {
		k.planFile(files, p, name)
	}
	for _, n := range p.survey.doubles(k) {
		k.planDouble(p, n)
	}
	return nil
}

// names are the files to be looked at: those that there were, and those that
// there are.
func (k *Keeper) names(p *plan) []string {
	var names []string
	if p.old != nil {
		for _, c := range p.old.Copies {
			names = append(names, c.Name)
		}
	}
	for name := range p.survey.sizes {
		if k.guards(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// drop takes a name away, in the way that harms no other file.
func (p *plan) drop(name, why string) {
	if p.tangled(name) {
		p.forget = append(p.forget, removal{name, why})
		return
	}
	p.remove = append(p.remove, removal{name, why})
}

// tangled reports whether the kernel, which frees what it takes a file to have,
// could do harm by removing it.
func (p *plan) tangled(name string) bool {
	_, shared := p.survey.shared[name]
	return shared || p.survey.broken[name] != nil
}

// planDouble takes away what a version has besides its blessed name, once that is
// known to be sound; and counted names where there is none.
func (k *Keeper) planDouble(p *plan, n bls.Name) {
	blessed := Path(n.Blessed())
	if _, there := p.survey.sizes[blessed]; there {
		if c := p.next.get(blessed); c == nil || c.Damaged {
			return
		}
	}
	p.drop(Path(n), n.String()+" was there besides the one that counts, and is removed")
}

// planFile decides about one file.
func (k *Keeper) planFile(files fs.FS, p *plan, name string) {
	old := p.old.get(name)
	_, there := p.survey.sizes[name]
	if !there {
		k.planLost(files, p, name, old)
		return
	}
	data, err := k.read(files, name)
	if err == nil {
		// It may be readable still, and its clusters lead nowhere behind that.
		err = p.survey.broken[name]
	}
	if err == nil {
		err = k.sound(files, name, data, old)
	}
	if err == nil {
		if newer := k.newer(files, name, data, old); newer != nil {
			p.put(restored{name, newer, true, fmt.Sprintf("%s was one that another had replaced, and the other is put back", name)})
			return
		}
		k.planCopy(p, name, data, old)
		return
	}
	good, cerr := k.source(files, name, old)
	if errors.Is(cerr, ErrUnread) {
		p.keepOld(old, fmt.Errorf("%s is damaged (%w), and %w", name, err, cerr))
		return
	}
	if cerr != nil {
		p.errs = append(p.errs, fmt.Errorf("%s is damaged (%w), and %w", name, err, cerr))
		c := entry(name, data)
		c.Size, c.Damaged = p.survey.sizes[name], true
		p.next.Copies = append(p.next.Copies, c)
		return
	}
	p.put(restored{name, good, true, fmt.Sprintf("%s was damaged (%v), and is put back", name, err)})
}

// planLost decides about a file that was there and is gone. A system that is bad
// now, or whose slot has another content, stays gone.
func (k *Keeper) planLost(files fs.FS, p *plan, name string, old *Copy) {
	if n, ok := k.system(name); ok {
		for _, have := range p.survey.systems(k) {
			if have.Version == n.Version {
				return // it has a counter: it is on trial, or was given up
			}
		}
	}
	data, err := k.source(files, name, old)
	if errors.Is(err, ErrUnread) {
		p.keepOld(old, fmt.Errorf("%s is gone, and its copy: %w", name, err))
		return
	}
	if err != nil {
		k.Say("%s is gone, and stays so: %v", name, err)
		return
	}
	p.put(restored{name, data, false, name + " was gone, and is put back"})
}

// put plans to write a file. A damaged one whose clusters are tangled is taken off
// the file system first: then there is nothing to replace.
func (p *plan) put(r restored) {
	if r.replace && p.tangled(r.name) {
		p.forget = append(p.forget, removal{name: r.name})
		r.replace = false
	}
	p.puts = append(p.puts, r)
	p.next.Copies = append(p.next.Copies, entry(r.name, r.data))
}

// keepOld leaves a copy as it is, since nothing better can be had this time.
func (p *plan) keepOld(old *Copy, err error) {
	p.errs = append(p.errs, err)
	if old != nil {
		p.next.Copies = append(p.next.Copies, *old)
	}
}

// planCopy copies a sound file, where the copy is not the same.
func (k *Keeper) planCopy(p *plan, name string, data []byte, old *Copy) {
	if old == nil || old.Damaged || !old.is(data) || k.copyChanged(old) {
		if err := k.Store.Keep(k.copyPath(name), data); err != nil {
			p.keepOld(old, fmt.Errorf("copy %s: %w", name, err))
			return
		}
		k.Say("%s is copied to the root partition", name)
	}
	p.next.Copies = append(p.next.Copies, entry(name, data))
}

func (k *Keeper) copyChanged(c *Copy) bool {
	_, err := k.copyOf(c)
	return err != nil
}

func (k *Keeper) read(files fs.FS, name string) ([]byte, error) {
	return bounded.File(files, name, enroll.MaxEFIFile)
}

// sound says why a file is no good. Where the firmware's keys tell, a file that
// they would start may have changed; where they do not, it may not, unless the
// boot manager was changed on both its paths.
func (k *Keeper) sound(files fs.FS, name string, data []byte, old *Copy) error {
	if name == layout.LoaderConf {
		if len(data) > maxSettings || !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
			return errors.New("it is not text")
		}
		return nil // anyone who owns the machine may change it
	}
	if err := k.startable(name, data); err != nil {
		return err
	}
	if k.Starts != nil || old == nil || old.Damaged || old.is(data) {
		return nil
	}
	if twin := twinOf(name); twin != "" {
		if other, err := k.read(files, twin); err == nil && bytes.Equal(other, data) {
			return nil
		}
	}
	return errors.New("it is not what it was")
}

// startable says why an image would not start, or is not the one of its name.
func (k *Keeper) startable(name string, data []byte) error {
	starts := k.Starts
	if starts == nil {
		starts = isImage
	}
	if err := starts(data); err != nil {
		return err
	}
	n, ok := k.system(name)
	if !ok {
		return nil
	}
	c, err := describe(data)
	if err != nil {
		return err
	}
	if c.ImageID != n.ImageID || c.Version != n.Version {
		return fmt.Errorf("it is %s %s inside", c.ImageID, c.Version)
	}
	return nil
}

// isImage says why a file is not an EFI image.
func isImage(data []byte) error {
	_, err := authenticode.Digest(data)
	return err
}

// fits says why a copy is not to be put back.
func (k *Keeper) fits(name string, data []byte) error {
	if name == layout.LoaderConf {
		return nil
	}
	if err := k.startable(name, data); err != nil {
		return err
	}
	if _, ok := k.system(name); !ok {
		return nil
	}
	c, err := describe(data)
	if err != nil {
		return err
	}
	return k.Belongs(c)
}

func describe(image []byte) (*contract.Contract, error) {
	parsed, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	initrd, ok := parsed.Section(".initrd")
	if !ok {
		return nil, errors.New("it has no initramfs")
	}
	return contract.FromInitrd(initrd)
}

// source returns what a damaged file is to be: its copy, or, of the boot manager,
// what lies on its other path.
func (k *Keeper) source(files fs.FS, name string, old *Copy) ([]byte, error) {
	data, err := k.copyOf(old)
	if err == nil {
		if err = k.fits(name, data); err == nil {
			return data, nil
		}
	}
	twin := twinOf(name)
	if twin == "" {
		return nil, err
	}
	data, terr := k.read(files, twin)
	if terr == nil {
		terr = k.startable(twin, data)
	}
	if terr != nil {
		return nil, err
	}
	return data, nil
}

// newer is the boot manager that has replaced the one of a name, where that is an old one
// and the other is still at hand: as a copy, or on the other path. Somebody has put the
// old one back, or the whole ESP from a backup, and what is newer is not lost by it.
func (k *Keeper) newer(files fs.FS, name string, data []byte, old *Copy) []byte {
	twin := twinOf(name)
	if k.Old == nil || twin == "" || !k.Old(data) {
		return nil
	}
	if have, err := k.copyOf(old); err == nil && k.fits(name, have) == nil && !k.Old(have) {
		return have
	}
	if have, err := k.read(files, twin); err == nil && k.startable(twin, have) == nil && !k.Old(have) {
		return have
	}
	return nil
}

// twinOf is the other path of the boot manager.
func twinOf(name string) string {
	switch name {
	case layout.RemovableManager:
		return layout.Manager
	case layout.Manager:
		return layout.RemovableManager
	}
	return ""
}

// apply does what was planned on the ESP. What fails keeps nothing else from
// being done, and stays planned.
func (k *Keeper) apply(dir hw.ESPDir, p *plan) {
	for _, r := range p.remove {
		if err := discard(dir, r.name); err != nil {
			p.errs = append(p.errs, err)
			continue
		}
		p.say(r.why)
	}
	p.puts = slices.DeleteFunc(p.puts, func(r restored) bool {
		err := dir.MakeDirectory(path.Dir(r.name))
		if err == nil {
			err = put(dir, r.name, r.data, r.replace)
		}
		if err != nil {
			p.errs = append(p.errs, err)
			return false
		}
		p.say(r.why)
		return true
	})
}

// undone gives what could not be put back the entry that it had.
func (p *plan) undone() {
	for _, r := range p.puts {
		p.next.Copies = slices.DeleteFunc(p.next.Copies, func(c Copy) bool { return c.Name == r.name })
		if was := p.old.get(r.name); was != nil {
			p.next.Copies = append(p.next.Copies, *was)
		}
	}
}
