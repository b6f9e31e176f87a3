package enroll

import (
	"bytes"
	"io/fs"
	"strings"
	"syscall"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
)

type record struct {
	attributes uint32
	data       []byte
}

// nvram keeps variables the way firmware does, faults included. It verifies no
// signature: in Setup Mode firmware takes any well-formed update, and out of it
// these tests append to dbx alone.
type nvram struct {
	*plug
	vars map[string]record
	// Faults, by variable.
	refuse    map[string]int    // writes still to be refused
	why       error             // with this
	drop      map[string]int    // writes still to be reported as done and forgotten
	lie       map[string]bool   // writes happen and are reported as failed
	open      map[string]bool   // stored without the authentication attribute
	garble    map[string]bool   // stored with a byte changed
	loseAt    map[string]string // when the first is written the second vanishes
	forgetful bool              // keys vanish at a restart
	lower     bool              // names are listed in lower case after a restart
	restarted bool
	writes    []string
	// trusts says whether an update out of Setup Mode is signed by a key above; nil: none is.
	trusts func(name string, attributes uint32, payload []byte) bool
}

func newNVRAM(p *plug) *nvram {
	n := &nvram{plug: p, vars: map[string]record{}, why: syscall.EACCES}
	n.flag("SecureBoot", 0)
	n.flag("SetupMode", 1)
	return n
}

func (n *nvram) flag(name string, value byte) {
	n.vars[name] = record{secureboot.BootServiceAccess | secureboot.RuntimeAccess, []byte{value}}
}

func (n *nvram) Read(name string, _ gpt.GUID) (uint32, []byte, error) {
	if err := n.tick(); err != nil {
		return 0, nil, err
	}
	if n.lower && n.restarted {
		if name != strings.ToLower(name) {
			return 0, nil, fs.ErrNotExist
		}
		for v := range n.vars {
			if strings.ToLower(v) == name {
				name = v
			}
		}
	}
	r, ok := n.vars[name]
	if !ok {
		return 0, nil, fs.ErrNotExist
	}
	return r.attributes, bytes.Clone(r.data), nil
}

func (n *nvram) WriteAuthenticated(name string, _ gpt.GUID, attributes uint32, payload []byte) error {
	if err := n.tick(); err != nil {
		return err
	}
	n.writes = append(n.writes, name)
	_, _, content, err := secureboot.SplitUpdate(payload)
	if err != nil {
		return syscall.EINVAL
	}
	revokes := name == "dbx" && attributes == secureboot.KeyAttributes|secureboot.AppendWrite
	signed := revokes || n.trusts != nil && n.trusts(name, attributes, payload)
	if n.vars["SetupMode"].data[0] != 1 && !signed || attributes != secureboot.KeyAttributes && !revokes {
		return syscall.EACCES
	}
	if revokes {
		attributes = secureboot.KeyAttributes
		content = append(bytes.Clone(n.vars[name].data), content...)
	}
	if n.refuse[name] > 0 {
		n.refuse[name]--
		return n.why
	}
	if n.drop[name] > 0 {
		n.drop[name]--
		return nil
	}
	n.store(name, attributes, bytes.Clone(content))
	if n.lie[name] {
		return n.why
	}
	return nil
}

func (*nvram) Room() (int64, bool) { return 0, false }

func (n *nvram) store(name string, attributes uint32, content []byte) {
	if n.open[name] {
		attributes &^= secureboot.TimeBasedAuthenticated
	}
	if n.garble[name] {
		content[len(content)-1] ^= 1
	}
	n.vars[name] = record{attributes, content}
	delete(n.vars, n.loseAt[name])
	if name == "PK" {
		n.flag("SetupMode", 0)
	}
}

// restart is what a reboot does to the variables.
func (n *nvram) restart(p *plug) {
	n.plug, n.restarted = p, true
	if n.forgetful {
		for _, v := range []string{"PK", "KEK", "db"} {
			delete(n.vars, v)
		}
		n.flag("SetupMode", 1)
	}
	n.flag("SecureBoot", 1-n.vars["SetupMode"].data[0])
}

// clone copies what is stored, not the faults.
func (n *nvram) clone() *nvram {
	c := newNVRAM(always())
	for k, v := range n.vars {
		c.vars[k] = v
	}
	return c
}
