// Package moduletrust has the owner decide whether a key that signs a release's kernel modules
// is trusted, where that key is not built into the kernel: its certificate is then in the
// firmware's db, from where a kernel that distributions have patched takes it.
//
// It refuses to widen db without a yes at the console in the same boot: of an earlier one there is
// the list alone, which root can put back as it was. What narrows db needs none: a certificate
// that no system of this machine brings any more goes by itself, and one whose owner has taken
// the yes back.
package moduletrust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/rootpart"
)

// timeout is how long the question waits for an answer.
const timeout = 10 * time.Minute

// WishFile is what the running system asks of the next boot about the running release's
// certificate: [WishAsk] or [WishNo], in a file that it sees as /var/lib/halogen/module-trust.
// Root of that system can write it, so it alone widens nothing.
const WishFile = rootpart.Shared + "/" + Wish

// Wish is the file's name.
const Wish = "module-trust"

// What the file may say.
const (
	WishAsk = "ask" // once more, after a no
	WishNo  = "no"  // a yes is taken back
)

const maxWish = 64 // bytes

// wished reads that file; empty where there is none, or it says nothing that is known.
func wished(store hw.Store) string {
	text, err := store.Read(WishFile, maxWish)
	wish := strings.TrimSpace(string(text))
	if err != nil || wish != WishAsk && wish != WishNo {
		return ""
	}
	return wish
}

// able reports whether db can be changed in this boot, so that the next one opens the root
// partition by itself: as for dbx, the TPM's record tells boots apart by PCR 7, and nothing is
// being replaced or tried.
func able(h *host.Host) bool {
	trial := func(n bls.Name) bool { return n.ImageID == h.Contract.ImageID && n.Trial() }
	return h.List != nil && !h.List.Bare && h.OwnEnforced() && h.RecordsPolicy() && h.Record.Programs && !h.Record.Passing() &&
		!slices.ContainsFunc(h.Names, trial)
}

// Waits reports whether Trust has something to do.
func Waits(h *host.Host) bool {
	if !able(h) {
		return false
	}
	if h.ModuleKey != nil && (wished(h.Store) != "" || unasked(h)) {
		return true
	}
	db, err := wanted(h, nil)
	return err == nil && !db.Same(h.List.Wanted.DB) && (h.FirmwareKeys.DB.Content.Same(db) || h.List.MayTryDB(db))
}

// unasked reports whether the owner is to be asked about the running release's certificate: they
// were not yet, or have said yes in a boot that was cut before db had it, or whose firmware has
// refused it and may be asked once more.
func unasked(h *host.Host) bool {
	key := secureboot.ModuleKey(h.ModuleKey)
	switch h.List.ModuleTrust(key) {
	case secureboot.Unasked:
		return true
	case secureboot.Trusted:
		if holds(h, key) || h.List.Wanted.DB.Contains(key) {
			return false
		}
		db, err := wanted(h, secureboot.Database{key})
		return err == nil && h.List.MayTryDB(db)
	}
	return false
}

func holds(h *host.Host, e secureboot.Entry) bool { return h.FirmwareKeys.DB.Content.Contains(e) }

// wanted is what db shall have: the certificates that the owner trusts of the systems on the
// ESP, since the other one is what this machine falls back to. said are those of a yes of this
// boot's. Others count where db holds them, for which PCR 7 vouches: the list may be an old one,
// by which a yes that was taken back, or whose certificate is gone, would count once more.
func wanted(h *host.Host, said secureboot.Database) (secureboot.Database, error) {
	db, err := trusted(h)
	return slices.DeleteFunc(db, func(e secureboot.Entry) bool { return secureboot.IsModuleKey(e) && !holds(h, e) && !said.Contains(e) }), err
}

// trusted is what db would have by the list alone.
func trusted(h *host.Host) (secureboot.Database, error) {
	var releases secureboot.Database
	if h.ModuleKey != nil {
		releases = append(releases, secureboot.ModuleKey(h.ModuleKey))
	}
	if !slices.ContainsFunc(h.List.Wanted.DB, func(e secureboot.Entry) bool { return secureboot.IsModuleKey(e) && !releases.Contains(e) }) {
		return h.List.DBFor(releases), nil // nothing that another system may need
	}
	for _, n := range h.Names {
		if h.IsOurs(n) || n.ImageID != h.Contract.ImageID || n.Bad() {
			continue
		}
		der, err := keyOf(h, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if der != nil {
			releases = append(releases, secureboot.ModuleKey(der))
		}
	}
	return h.List.DBFor(releases), nil
}

// keyOf is the certificate that a system on the ESP wants in db. A file that somebody has laid
// there counts for no more than keeping a certificate that is trusted.
func keyOf(h *host.Host, n bls.Name) (der []byte, err error) {
	err = h.ReadESP(func(files fs.FS) error {
		image, err := rootpart.ReadUKI(files, n)
		if err != nil {
			return err
		}
		parsed, err := uki.Parse(image)
		if err != nil {
			return err
		}
		initrd, _ := parsed.Section(".initrd")
		der, err = contract.ModuleKeyFromInitrd(initrd)
		return err
	})
	return der, err
}

// Trust asks the owner where that is to be done, and has db hold what they trust. wrote: db is
// another one now, so that the machine is to start again.
//
// Four writes, of which a cut leaves a machine that opens by itself:
//
//   - The list keeps the answer. Cut until db is written, the next boot asks again where that
//     was a yes, and where it was a no until the list has it.
//   - The TPM's record allows every boot with db as it is and as it will be, as for dbx
//     ([host.Host.AdmitVariable]). Cut after it, the next boot settles it back, and this begins
//     again.
//   - The list counts the attempt, so that firmware which dies of it, or has no room, is not
//     asked at every start. Then db is written, at once or not at all.
//   - The list wants in db what db holds by now. Cut before it, the next boot finds db as it is
//     to be, and does that.
func Trust(h *host.Host) (wrote bool, err error) {
	var said secureboot.Database
	if h.ModuleKey != nil {
		yes, err := settle(h)
		if err != nil {
			return false, err
		}
		if yes {
			said = secureboot.Database{secureboot.ModuleKey(h.ModuleKey)}
		}
	}
	db, err := wanted(h, said)
	if err != nil || db.Same(h.List.Wanted.DB) {
		return false, err
	}
	if !h.FirmwareKeys.DB.Content.Same(db) {
		if !h.List.MayTryDB(db) {
			return false, nil
		}
		if wrote, err = write(h, db); err != nil {
			return wrote, fmt.Errorf("have the firmware change db for kernel modules (after %d attempts it is left alone): %w", secureboot.MaxTries, err)
		}
	}
	h.List.TakeDB(db)
	if err := h.KeepList(); err != nil { // the next boot does it
		h.Log.Say("what db holds by now was not noted: %v", err)
	}
	return wrote, nil
}

// settle does what the running system has asked, and asks the owner where nobody has yet. yes: they
// have just said that.
func settle(h *host.Host) (yes bool, err error) {
	key, changed := secureboot.ModuleKey(h.ModuleKey), false
	if h.List.Wanted.DB.Contains(key) && !holds(h, key) {
		// Taken out in the firmware's setup, or the list is an old one: a no, either way.
		h.List.TrustModules(key, false)
		h.List.Wanted.DB, changed = h.List.Wanted.DB.Without(secureboot.Database{key}), true
	}
	wish := wished(h.Store)
	switch wish {
	case WishNo:
		changed = h.List.TrustModules(key, false) || changed
	case WishAsk:
		changed = h.List.AskAgain(key) || changed
	}
	if unasked(h) {
		c, err := prompt.Open(h)
		if err != nil {
			h.Log.Say("nobody can be asked whose kernel modules are to be trusted: %v", err)
			return false, nil
		}
		answer, err := Ask(h, c)
		if err = errors.Join(err, c.Close()); err != nil {
			return false, err
		}
		yes = answer == secureboot.Trusted
		changed = h.List.TrustModules(key, yes) || changed
	}
	if changed {
		if err := h.KeepList(); err != nil {
			return false, err
		}
	}
	if wish == "" {
		return yes, nil
	}
	return yes, h.Store.Remove(WishFile) // cut before it, what was asked for is done once more
}

// Ask asks about the running release's certificate. Where nobody answers that is a no: it is not
// to be asked at each start of a machine that stands alone.
func Ask(h *host.Host, c hw.Console) (secureboot.Trust, error) {
	cert, err := x509.ParseCertificate(h.ModuleKey)
	if err != nil {
		return secureboot.Unasked, err
	}
	yes, err := hw.AskYes(c, question(h, cert), timeout)
	switch {
	case err != nil && !errors.Is(err, hw.ErrNobody):
		return secureboot.Unasked, err
	case yes:
		return secureboot.Trusted, nil
	case err != nil:
		h.Log.Say("nobody has answered: the release's kernel modules that %s signs are not trusted, and do not load; `halogenctl module-trust ask` has the next start ask again", name(cert))
	default:
		h.Log.Say("the release's kernel modules that %s signs are not trusted, as was answered, and do not load", name(cert))
	}
	return secureboot.Declined, nil
}

func name(cert *x509.Certificate) string { return secureboot.Printable(cert.Subject.String()) }

// question names the key, and says what a yes is good for.
func question(h *host.Host, cert *x509.Certificate) string {
	l := h.Language
	text := l.Say(words.ModulesAsk, name(cert), sha256.Sum256(cert.Raw)) + l.Text(words.ModulesRun) + "\n" + l.Text(words.ModulesStart) + "\n"
	if h.Chip.Err != nil {
		text += l.Text(words.OthersNoTPM) + "\n"
	}
	return text + l.Text(words.ModulesChosen)
}

// write gives the firmware another db, once the TPM's record allows the boots with it.
func write(h *host.Host, db secureboot.Database) (wrote bool, err error) {
	start, err := h.ToldStart()
	if err != nil {
		return false, err
	}
	if start.Unbound != nil {
		return false, start.Unbound
	}
	content, err := db.Marshal()
	if err != nil {
		return false, err
	}
	if err := h.AdmitVariable(start, secureboot.DB, content); err != nil {
		h.List.TryDB(db)
		return false, errors.Join(err, h.KeepList())
	}
	keys, err := h.StoredKeys(h.Secret)
	if err != nil {
		return false, err
	}
	if keys == nil {
		return false, errors.New("this machine's Secure Boot keys are missing from the root partition")
	}
	defer keys.Wipe()
	h.List.TryDB(db)
	if err := h.KeepList(); err != nil {
		return false, err
	}
	next := h.List.Wanted
	next.DB = db
	e := enroll.Enroller{
		Variables: h.Variables, Keys: keys, Wanted: next, Time: secureboot.Timestamp(h.Now(), h.Contract.Date()),
		Pause: h.Sleep, Say: func(m string) { h.Log.Say("%s", m) },
	}
	// An old list does not know what this machine has put there since.
	modules := slices.DeleteFunc(slices.Clone(h.FirmwareKeys.DB.Content), func(e secureboot.Entry) bool { return !secureboot.IsModuleKey(e) })
	refused := e.ReplaceDB(slices.Concat(h.List.Wanted.DB, modules))
	// Whatever it has answered: what db holds now is what the next boot is measured with.
	now, err := enroll.Observe(h.Variables)
	if err == nil && now.DB.Problem == nil {
		wrote = !bytes.Equal(now.DB.Raw, h.FirmwareKeys.DB.Raw)
		if wrote && !bytes.Equal(now.DB.Raw, content) {
			err = h.AdmitVariable(start, secureboot.DB, now.DB.Raw)
		}
	}
	return wrote, errors.Join(refused, err)
}
