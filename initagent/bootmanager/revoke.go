package bootmanager

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// tellsReplaced reports whether a boot manager that is replaced now can be revoked
// later: this machine's own keys are enforced, and the TPM's record tells boot managers
// apart, so that it is known which one has started a boot and what unlocks without it.
func tellsReplaced(h *host.Host) bool {
	return h.List != nil && !h.List.Bare && h.OwnEnforced() && h.RecordsPolicy() && h.Record.Programs
}

// Revocable reports whether a boot manager was replaced that the firmware would still
// start, and the exchange has come to its end, or the running release brings entries for
// dbx. A trial comes first: what the firmware makes of dbx must not be taken for its failure.
func Revocable(h *host.Host) bool {
	trial := func(n bls.Name) bool { return n.ImageID == h.Contract.ImageID && n.Trial() }
	return tellsReplaced(h) && !h.Record.Passing() &&
		(len(h.List.ToRevoke()) > 0 || brings(h)) && !slices.ContainsFunc(h.Names, trial)
}

// Revoke has the firmware refuse the boot managers that were replaced, or in another boot
// what the running release names. Three writes lead to it, and one follows; cut anywhere,
// the next boot unlocks by itself:
//
//   - The TPM's record allows every boot with dbx as it is and as it will be; the boots
//     of now are marked as passing. Cut after it, the next boot starts with the old
//     dbx, is allowed, and settles the record back to that ([policy.Record.Renew]);
//     then it begins again.
//   - The list counts the attempt, so that firmware which dies of it is not asked at
//     every start. Cut after it, the next boot asks once more.
//   - dbx is appended to, which firmware does at once or not at all. Cut after it, the
//     next boot starts with the new dbx, is allowed, and takes what dbx holds over
//     into the list (unlock.opening.renewList).
//   - The list wants in dbx what dbx holds by now. It does not before: a machine whose
//     firmware refuses would look like one from which somebody has taken a revocation,
//     and its owner could not accept it after a firmware update.
//
// Until the restart nothing else writes the record: this is the last step that does.
// The next boot settles it, to the PCR 7 that it was started with.
func Revoke(h *host.Host, keeper *esp.Keeper) error {
	start, needed, err := needs(h, keeper)
	if err != nil {
		return errors.Join(err, tryRelease(h))
	}
	images := unneeded(needed, h.List.ToRevoke())
	if len(images) == 0 {
		return revokeForRelease(h, start, needed)
	}
	var add secureboot.Database
	for _, i := range images {
		add = append(add, secureboot.Hash(h.List.Owner, [32]byte(i.Digest)))
	}
	if err := appendRevocations(h, start, add, func() { h.List.Try(images) }); err != nil {
		return fmt.Errorf("have the firmware refuse %d replaced boot managers (after %d attempts it is left alone): %w", len(images), secureboot.MaxTries, err)
	}
	h.List.RevokeReplaced(images)
	if err := h.KeepList(); err != nil { // the next boot does it
		h.Log.Say("what the firmware refuses by now was not noted: %v", err)
	}
	for _, i := range images {
		h.Log.Say("the firmware does not start %s any more (hash %x)", i.Name, []byte(i.Digest))
	}
	return nil
}

// appendRevocations appends to dbx, once the TPM's record allows the boots with it. try
// counts the attempt in the list.
func appendRevocations(h *host.Host, start *rootpart.Start, add secureboot.Database, try func()) error {
	wanted := h.List.Wanted
	wanted.DBX = slices.Concat(wanted.DBX, add)
	_, after, err := enroll.Revocations(h.FirmwareKeys, wanted)
	if err != nil {
		return err
	}
	if err := admitDBX(h, start, after); err != nil {
		return err
	}
	keys, err := h.StoredKeys(h.Secret)
	if err != nil {
		return err
	}
	if keys == nil {
		return errors.New("this machine's Secure Boot keys are missing from the root partition")
	}
	defer keys.Wipe()
	try()
	if err := h.KeepList(); err != nil {
		return err
	}
	e := enroll.Enroller{
		Variables: h.Variables, Keys: keys, Wanted: wanted, Time: secureboot.Timestamp(h.Now(), h.Contract.Date()),
		Pause: h.Sleep, Say: func(m string) { h.Log.Say("%s", m) },
	}
	refused := e.Revoke()
	// Whatever it has answered: what dbx holds now is what the next boot is measured
	// with. Firmware that orders it otherwise costs one question at most, where the
	// power is cut right here.
	now, err := enroll.Observe(h.Variables)
	if err == nil && now.DBX.Problem == nil && !bytes.Equal(now.DBX.Raw, after) && !bytes.Equal(now.DBX.Raw, h.FirmwareKeys.DBX.Raw) {
		err = admitDBX(h, start, now.DBX.Raw)
	}
	return errors.Join(refused, err)
}

// admitDBX lets every system that may unlock now do so with another content of dbx as
// well.
func admitDBX(h *host.Host, start *rootpart.Start, dbx []byte) error {
	return h.AdmitVariable(start, secureboot.DBX, dbx)
}

// needs are this start, and all programs that this machine starts, or may have to: what
// either boot manager's path has, and a copy, and each UKI of the ESP, of a system that
// unlocks or not, and what the event log has, option ROMs among it.
func needs(h *host.Host, keeper *esp.Keeper) (start *rootpart.Start, n secureboot.Needed, err error) {
	if start, err = h.ToldStart(); err != nil {
		return nil, n, err
	}
	if start.Unbound != nil {
		return nil, n, start.Unbound
	}
	add := func(name string, digests ...pcr.Digest) {
		for _, d := range digests {
			n.Programs = append(n.Programs, secureboot.Program{Name: name, Digest: d})
		}
	}
	for _, m := range start.Managers {
		add("the boot manager", m.Digest, m.Signed)
	}
	copies, err := keeper.Managers()
	if err != nil {
		return nil, n, err
	}
	for _, image := range copies {
		if m, err := rootpart.NewManager(image); err == nil {
			add("the copy of the boot manager", m.Digest, m.Signed)
		}
	}
	if err := addUKIs(h, add); err != nil {
		return nil, n, err
	}
	log, _, err := h.ReadLog()
	if err != nil {
		return nil, n, err
	}
	add("a program that ran in this boot", log.Started()...)
	authorities, err := log.Authorities()
	if err != nil {
		return nil, n, err
	}
	for _, a := range authorities {
		n.Authorities = append(n.Authorities, secureboot.ParseSignatureData(a))
	}
	n.Drivers, n.Own, n.Reserved = log.Drivers(), ownCertificates(h.List), reserved(h.List)
	return start, n, nil
}

// addUKIs adds the UKIs of the ESP and their kernels. One of this image that has tries and
// cannot be read may be read tomorrow.
func addUKIs(h *host.Host, add func(string, ...pcr.Digest)) error {
	for _, n := range h.Names {
		var image []byte
		err := h.ReadESP(func(files fs.FS) (err error) {
			image, err = rootpart.ReadUKI(files, n)
			return err
		})
		if err != nil && (n.ImageID != h.Contract.ImageID || n.Bad()) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		// As it is measured and as it is signed: they differ where it is not signed yet.
		if m, err := rootpart.NewManager(image); err == nil {
			add("the UKI "+n.String(), m.Digest, m.Signed)
		}
		if im, err := rootpart.ReadImage(image); err == nil && im.Kernel != nil {
			add("the kernel of "+n.String(), *im.Kernel)
		}
	}
	return nil
}

// reserved are the entries of others in db but for those that the image asks for, and those of
// kernel modules, which its distributor may take back.
func reserved(l *secureboot.List) (d secureboot.Database) {
	for _, e := range l.Wanted.DB {
		if from := l.Origin(e); from != "" && from != secureboot.FromContract && !secureboot.IsModuleKey(e) {
			d = append(d, e)
		}
	}
	return d
}

// ownCertificates are those of this machine's keys.
func ownCertificates(l *secureboot.List) (own []*x509.Certificate) {
	for _, e := range slices.Concat(l.Wanted.PK, l.Wanted.KEK, l.Wanted.DB) {
		if e.Type != secureboot.TypeX509 || l.Origin(e) != "" {
			continue
		}
		if c, err := x509.ParseCertificate(e.Data); err == nil {
			own = append(own, c)
		}
	}
	return own
}

// unneeded are those of some images that this machine starts without.
func unneeded(needed secureboot.Needed, images []secureboot.Image) []secureboot.Image {
	return slices.DeleteFunc(images, func(i secureboot.Image) bool {
		return slices.ContainsFunc(needed.Programs, func(p secureboot.Program) bool { return p.Digest == [sha256.Size]byte(i.Digest) })
	})
}
