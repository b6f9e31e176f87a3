package secureboot

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/strictjson"
)

// An Origin says where an entry that is not this machine's own key came from.
type Origin string

// Origins.
const (
	FromContract  Origin = "image contract"   // vendor_keys asked for it
	FromFirmware  Origin = "firmware default" // an option ROM needs it, and the firmware keeps it as a default
	FromOptionROM Origin = "option ROM"       // the hash of one that was started
	FromOwner     Origin = "owner"            // the owner's choice
	FromLive      Origin = "firmware in use"  // was there, and vouched for by PCR 7, when the list was made
	FromRevoked   Origin = "revoked"          // this machine's own, not to start again; why is behind it
	FromRelease   Origin = "release"          // an entry of dbx that a release has named; which is behind it
)

// An Image is an EFI image that counts as this machine's own.
type Image struct {
	Digest contract.Hex `json:"digest"` // Authenticode, SHA-256
	Name   string       `json:"name"`   // of the file, and of the release that brought it
}

// A List is what this machine wants its firmware to hold, and which EFI images
// its db key may sign. It is stored inside the wrapped key set, so that only the
// machine secret can change it. Whatever accepts, enrolls, or judges an EFI file
// asks it and nothing else.
type List struct {
	Owner  gpt.GUID
	Wanted Wanted
	// Bare: no list was stored, and this one was made of the keys alone. It
	// allows no image and no entry of others.
	Bare bool

	origins map[string]Origin
	images  []Image // the oldest first
}

const (
	listMagic = "HSBLIST1"
	// maxImages bounds how many images the list names. A release brings two, so
	// that the oldest, which goes first, is years old.
	maxImages    = 128
	maxImageName = 200
	maxOrigins   = 8192
	maxListText  = 1 << 20
	// MaxList bounds an encoded list in bytes.
	MaxList = len(listMagic) + 4 + maxListText + 4 + len(wantedMagic) + 4*(4+MaxDatabase)
)

// listText is the part of a list that is stored as JSON.
type listText struct {
	Owner   string            `json:"owner"`
	Origins map[string]Origin `json:"origins"` // by the SHA-256 hash of the entry
	Images  []Image           `json:"images"`
}

// NewList returns the list of a machine with these keys and what the vendor's
// parts of it need.
func NewList(k *KeySet, vendor Vendor) *List {
	l := &List{Owner: k.Owner, Wanted: k.Wanted(vendor), origins: map[string]Origin{}}
	for _, d := range []Database{vendor.KEK, vendor.DB, vendor.DBX} {
		for _, e := range d {
			l.origins[entryID(e)] = vendor.origin(e)
		}
	}
	return l
}

// BareList returns the list of a machine that has stored none.
func BareList(k *KeySet) *List {
	l := NewList(k, Vendor{})
	l.Bare = true
	return l
}

func entryID(e Entry) string {
	sum := sha256.Sum256(append(appendGUID(nil, e.Type), e.SignatureData()...))
	return hex.EncodeToString(sum[:])
}

// Origin says where an entry came from; empty for this machine's own.
func (l *List) Origin(e Entry) Origin { return l.origins[entryID(e)] }

// Adopt takes the content of the firmware's variables over as what is wanted,
// and reports whether anything was new. The caller knows that they are as they
// should be: PCR 7, which they were measured into, has let the TPM release the
// machine secret.
func (l *List) Adopt(live Wanted) {
	for _, v := range []struct {
		to   *Database
		from Database
	}{{&l.Wanted.PK, live.PK}, {&l.Wanted.KEK, live.KEK}, {&l.Wanted.DB, live.DB}} {
		l.note(v.from.Without(*v.to), FromLive)
		*v.to = slices.Clone(v.from)
	}
	l.AdoptRevocations(live.DBX)
}

// Rekey returns the list of a machine that replaces its keys: the new certificates take
// the places of the old ones, and everything else stays as it is. Nothing that only the
// old db key has signed counts by it.
func (l *List) Rekey(old, fresh *KeySet) (*List, error) {
	next := l
	for _, r := range []struct {
		in        Variable
		was, will *x509.Certificate
	}{
		{PK, old.PK.Certificate, fresh.PK.Certificate},
		{KEK, old.KEK.Certificate, fresh.KEK.Certificate},
		{DB, old.DB.Certificate, fresh.DB.Certificate},
	} {
		var err error
		if next, err = next.Swap(r.in, r.was, r.will); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// Swap returns the list with one of this machine's own certificates in the place of
// another, in PK, KEK or db. Where each entry came from stays: an image that another has
// replaced is still a replaced one, whatever key has signed it.
func (l *List) Swap(v Variable, was, will *x509.Certificate) (*List, error) {
	next := *l
	next.origins, next.images = maps.Clone(l.origins), slices.Clone(l.images)
	in := map[Variable]*Database{PK: &next.Wanted.PK, KEK: &next.Wanted.KEK, DB: &next.Wanted.DB}[v]
	if in == nil {
		return nil, fmt.Errorf("replace a Secure Boot key: %s has none", v)
	}
	at := slices.IndexFunc(*in, func(e Entry) bool { return e.Type == TypeX509 && bytes.Equal(e.Data, was.Raw) })
	if at < 0 {
		return nil, fmt.Errorf("replace Secure Boot keys: the list lacks %q", was.Subject.CommonName)
	}
	*in = slices.Clone(*in)
	(*in)[at] = Certificate(l.Owner, will)
	return &next, nil
}

// Add wants an entry of others in a variable, and reports whether the list has
// changed.
func (l *List) Add(v Variable, e Entry, from Origin) bool {
	to := map[Variable]*Database{KEK: &l.Wanted.KEK, DB: &l.Wanted.DB, DBX: &l.Wanted.DBX}[v]
	if to == nil || to.Contains(e) {
		return false
	}
	*to = append(slices.Clone(*to), e)
	l.note(Database{e}, from)
	return true
}

// AdoptRevocations adds what dbx holds beyond the list, and reports whether
// there was anything.
func (l *List) AdoptRevocations(live Database) bool {
	fresh := live.Without(l.Wanted.DBX)
	for _, e := range fresh {
		l.giveUp(e) // as where a cut came between the firmware's write and the list's
	}
	l.note(fresh, FromLive)
	l.Wanted.DBX = slices.Concat(l.Wanted.DBX, live.Without(l.Wanted.DBX))
	return len(fresh) > 0
}

// whyReplaced is why an image is revoked that another has replaced.
const whyReplaced = "another has taken its place"

// RevokeReplaced wants replaced images in dbx, which holds them by now.
func (l *List) RevokeReplaced(images []Image) {
	for _, i := range images {
		l.Revoke([32]byte(i.Digest), whyReplaced)
	}
}

func (l *List) note(entries Database, from Origin) {
	for _, e := range entries {
		if id := entryID(e); l.origins[id] == "" {
			l.origins[id] = from
		}
	}
}

// DBCertificate is the certificate of the key that signs what this machine
// starts.
func (l *List) DBCertificate() (*x509.Certificate, error) {
	for _, e := range l.Wanted.DB {
		if e.Type == TypeX509 && e.Owner == l.Owner && l.origins[entryID(e)] == "" {
			return x509.ParseCertificate(e.Data)
		}
	}
	return nil, errors.New("the list has no certificate of this machine's own for db")
}

// Allows reports whether an image with this Authenticode hash counts as this
// machine's own.
func (l *List) Allows(digest [32]byte) bool { return l.image(digest) >= 0 }

func (l *List) image(digest [32]byte) int {
	return slices.IndexFunc(l.images, func(i Image) bool { return bytes.Equal(i.Digest, digest[:]) })
}

// Names reports whether an image of that name is in the list.
func (l *List) Names(name string) bool {
	return slices.ContainsFunc(l.images, func(i Image) bool { return i.Name == name })
}

// Images are those that count as this machine's own, the oldest first.
func (l *List) Images() []Image { return slices.Clone(l.images) }

// Allow adds an image, and reports whether the list has changed. One that was
// revoked stays so.
func (l *List) Allow(digest [32]byte, name string) bool {
	if len(name) > maxImageName {
		name = name[:maxImageName]
	}
	at := l.image(digest)
	if l.Revoked(digest) || at >= 0 && l.images[at].Name == name {
		return false
	}
	if at >= 0 { // again: it is not to be the next that goes
		l.images = slices.Delete(l.images, at, at+1)
	}
	l.images = append(l.images, Image{digest[:], name})
	if over := len(l.images) - maxImages; over > 0 {
		l.images = slices.Delete(l.images, 0, over)
	}
	return true
}

// Revoked reports whether dbx is wanted to hold the hash.
func (l *List) Revoked(digest [32]byte) bool {
	return slices.ContainsFunc(l.Wanted.DBX, func(e Entry) bool { return e.Type == TypeSHA256 && bytes.Equal(e.Data, digest[:]) })
}

// Revoke wants an image in dbx that was this machine's own, and reports whether
// the list has changed. That the machine does not need it any more is for the
// caller to know; why is kept as its origin.
func (l *List) Revoke(digest [32]byte, why string) bool {
	if at := l.image(digest); at >= 0 {
		l.images = slices.Delete(l.images, at, at+1)
	}
	if l.Revoked(digest) {
		return false
	}
	e := Hash(l.Owner, digest)
	l.Wanted.DBX = append(l.Wanted.DBX, e)
	l.origins[entryID(e)] = FromRevoked + Origin(": "+why[:min(len(why), maxImageName)])
	return true
}

// Marshal encodes the list for being stored, encrypted.
func (l *List) Marshal() ([]byte, error) {
	text, err := json.Marshal(listText{l.Owner.String(), l.origins, l.images})
	if err != nil {
		return nil, fmt.Errorf("encode the list of Secure Boot contents: %w", err)
	}
	wanted, err := l.Wanted.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode the list of Secure Boot contents: %w", err)
	}
	out := appendPart(appendPart([]byte(listMagic), text), wanted)
	if _, err := ParseList(out); err != nil {
		return nil, err
	}
	return out, nil
}

// ParseList reads what Marshal wrote.
func ParseList(b []byte) (*List, error) {
	if len(b) < len(listMagic) || string(b[:len(listMagic)]) != listMagic {
		return nil, errors.New("this is not a list of Secure Boot contents")
	}
	text, rest, err := cutPart(b[len(listMagic):], maxListText)
	if err != nil {
		return nil, fmt.Errorf("list of Secure Boot contents: %w", err)
	}
	var t listText
	if err := strictjson.Decode(text, &t); err != nil {
		return nil, fmt.Errorf("list of Secure Boot contents: %w", err)
	}
	public, rest, err := cutPart(rest, uint32(MaxList))
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow it", len(rest))
	}
	l := &List{origins: t.Origins, images: t.Images}
	if err == nil {
		l.Wanted, err = ParseWanted(public)
	}
	if err == nil {
		l.Owner, err = gpt.ParseGUID(t.Owner)
	}
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return nil, fmt.Errorf("list of Secure Boot contents: %w", err)
	}
	if l.origins == nil {
		l.origins = map[string]Origin{}
	}
	return l, nil
}

func (t *listText) check() error {
	if len(t.Images) > maxImages || len(t.Origins) > maxOrigins {
		return fmt.Errorf("%d images and %d origins, at most %d and %d are read", len(t.Images), len(t.Origins), maxImages, maxOrigins)
	}
	for _, i := range t.Images {
		if len(i.Digest) != sha256Size || len(i.Name) > maxImageName {
			return fmt.Errorf("image %q has a hash of %d bytes, want %d", printable(i.Name), len(i.Digest), sha256Size)
		}
	}
	return nil
}

// withList begins the wrapped form that has a list behind the keys: the magic,
// the wrapped keys behind their length, a nonce, and the list under AES-256-GCM.
// The magic, a hash of the wrapped keys and the caller's context are
// authenticated with it, so that no list passes for that of other keys.
const withList = "HSBWRAP2"

// MaxWrappedList bounds that form in bytes.
const MaxWrappedList = len(withList) + 4 + MaxWrapped + nonceSize + MaxList + tagSize

// ErrNoList says that wrapped keys have no list with them.
var ErrNoList = errors.New("no list is stored with the Secure Boot keys")

// WrapList puts a list behind wrapped keys, in place of the one that may be
// there. The rules for key and context are those of Wrap.
func WrapList(random io.Reader, key *[32]byte, context string, wrapped []byte, l *List) ([]byte, error) {
	keys, _, err := SplitList(wrapped)
	if err != nil {
		return nil, err
	}
	plain, err := l.Marshal()
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	out := appendPart([]byte(withList), keys)
	nonce := make([]byte, nonceSize)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("wrap the list of Secure Boot contents: read a nonce of %d random bytes: %w", nonceSize, err)
	}
	out = append(out, nonce...)
	return aead.Seal(out, nonce, plain, listContext(keys, context)), nil
}

// UnwrapList returns the list behind wrapped keys, or ErrNoList.
func UnwrapList(key *[32]byte, context string, wrapped []byte) (*List, error) {
	keys, sealed, err := SplitList(wrapped)
	if err != nil {
		return nil, err
	}
	if sealed == nil {
		return nil, ErrNoList
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], listContext(keys, context))
	if err != nil {
		return nil, fmt.Errorf("list of Secure Boot contents: %w", ErrUnwrap)
	}
	return ParseList(plain)
}

// SplitList takes wrapped keys and the encrypted list behind them apart; that is
// nil where there is none.
func SplitList(wrapped []byte) (keys, list []byte, err error) {
	if len(wrapped) < len(withList) || string(wrapped[:len(withList)]) != withList {
		return wrapped, nil, nil
	}
	keys, list, err = cutPart(wrapped[len(withList):], uint32(MaxWrapped))
	if err == nil && (len(list) < nonceSize+tagSize || len(wrapped) > MaxWrappedList) {
		err = fmt.Errorf("%d bytes are left for the list", len(list))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("wrapped Secure Boot keys: %w", err)
	}
	return keys, list, nil
}

func listContext(keys []byte, context string) []byte {
	sum := sha256.Sum256(keys)
	out := binary.LittleEndian.AppendUint32([]byte(withList), uint32(len(sum)))
	return append(append(out, sum[:]...), context...)
}
