// Package moduletrust has the owner decide whether a key that signs a release's kernel modules
// is trusted, where that key is not built into the kernel: its certificate is then in the
// firmware's db, from where a kernel that distributions have patched takes it.
//
// It refuses to widen db without a yes at the console. What narrows it needs none: a certificate
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
	if h.ModuleKey != nil && (wished(h.Store) != "" || h.List.ModuleTrust(secureboot.ModuleKey(h.ModuleKey)) == secureboot.Unasked) {
		return true
	}
	db, err := wanted(h)
	return err == nil && !db.Same(h.List.Wanted.DB) && h.List.MayTryDB(db)
}

// wanted is what db shall have: the certificates that the owner trusts of the systems on the
// ESP, since the other one is what this machine falls back to.
func wanted(h *host.Host) (secureboot.Database, error) {
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
//   - The list keeps the answer. Cut before it, the next boot asks again; cut after it, the
//     next boot goes on without asking.
//   - The TPM's record allows every boot with db as it is and as it will be, as for dbx
//     ([host.Host.AdmitVariable]). Cut after it, the next boot settles it back, and this begins
//     again.
//   - The list counts the attempt, so that firmware which dies of it, or has no room, is not
//     asked at every start. Then db is written, at once or not at all.
//   - The list wants in db what db holds by now. Cut before it, the next boot finds db as it is
//     to be, and does that.
func Trust(h *host.Host) (wrote bool, err error) {
	if h.ModuleKey != nil {
		if err := settle(h); err != nil {
			return false, err
		}
	}
	db, err := wanted(h)
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

// settle does what the running system has asked, and asks the owner where nobody has yet.
func settle(h *host.Host) error {
	key, changed := secureboot.ModuleKey(h.ModuleKey), false
	wish := wished(h.Store)
	switch wish {
	case WishNo:
		changed = h.List.TrustModules(key, false)
	case WishAsk:
		changed = h.List.AskAgain(key)
	}
	if h.List.ModuleTrust(key) == secureboot.Unasked {
		c, err := prompt.Open(h)
		if err != nil {
			h.Log.Say("nobody can be asked whose kernel modules are to be trusted: %v", err)
			return nil
		}
		answer, err := Ask(h, c)
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
		changed = h.List.TrustModules(key, answer == secureboot.Trusted) || changed
	}
	if changed {
		if err := h.KeepList(); err != nil {
			return err
		}
	}
	if wish == "" {
		return nil
	}
	return h.Store.Remove(WishFile) // cut before it, what was asked for is done once more
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
	refused := e.ReplaceDB(h.List.Wanted.DB)
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
