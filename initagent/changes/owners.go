package changes

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"halogenos.internal/boot/etcmerge"
)

// owners lead from the image's numbers of users and groups to those that the same ones have
// here. By the image's numbers, a file that is given back would belong to the account that has them here.
type owners struct {
	etcmerge.Owners
	unknown error // why they are not known; nothing is translated then
}

// owners are those of /etc, as the merge at a system's first start has them. Where /etc is not
// laid over the image's, that translates nothing either.
func (m *Machine) owners() owners {
	i := slices.IndexFunc(m.Pairs, func(p Pair) bool { return p.Path == "/etc" })
	if i < 0 {
		return owners{}
	}
	here, err := accountsOf(m.Pairs[i].Merged)
	if err != nil {
		return owners{unknown: fmt.Errorf("whose number is whose on this machine is not known: %w", err)}
	}
	image, err := accountsOf(m.Pairs[i].Image)
	if err != nil {
		return owners{unknown: fmt.Errorf("whose number is whose in the image is not known: %w", err)}
	}
	return owners{Owners: etcmerge.OwnersBetween(image, here)}
}

// accountsOf reads the files of an /etc. One that is missing has nobody.
func accountsOf(etc *os.File) (a etcmerge.Accounts, err error) {
	for name, into := range map[string]*[]byte{"passwd": &a.Passwd, "group": &a.Group} {
		n, err := open(etc, name)
		if err == nil && n != nil {
			*into, err = n.read(etcmerge.MaxAccounts)
			n.close()
		}
		if err != nil {
			return a, fmt.Errorf("/etc/%s: %w", name, err)
		}
	}
	return a, nil
}

// of is an entry of the image's as it is to be here.
func (o owners) of(image *node) (etcmerge.Entry, error) {
	e, err := image.entry()
	if err == nil {
		o.Translate(&e)
	}
	return e, err
}

// toGive is an entry of the image's as it is made here. Where nobody knows whose numbers are
// whose, one that is not root's alone is refused.
func (o owners) toGive(image *node) (etcmerge.Entry, error) {
	e, err := o.of(image)
	lists := slices.ContainsFunc(slices.Collect(maps.Keys(e.Xattrs)), func(name string) bool { return strings.HasPrefix(name, "system.posix_acl_") })
	if err == nil && (e.UID != 0 || e.GID != 0 || lists) {
		err = o.unknown
	}
	return e, err
}

// stated says what an attribute is here, and what it would be of the image's.
func stated(what, here, image, translated string) string {
	s := fmt.Sprintf("%s %s, in the image %s", what, here, image)
	if translated != image {
		s += ", which is " + translated + " here"
	}
	return s
}
