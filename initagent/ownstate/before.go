package ownstate

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// beforeDirectory is where the initramfs has the image of the system before mounted
// while its state is carried over, and BeforeDevice its device-mapper device.
const (
	beforeDirectory = "/before"
	BeforeDevice    = "before"
)

// before is the system that another UKI on the ESP belongs to.
type before struct {
	slot     layout.Slot
	contract *contract.Contract
	image    []byte // the UKI
}

// systemBefore is the system that may have run before this one: of the UKIs on the ESP
// the one that a slot holds, blessed rather than on trial. nil where there is none.
func systemBefore(h *host.Host) (out *before) {
	var last bls.Name
	for _, n := range h.Names {
		if n.ImageID != h.Contract.ImageID || h.IsOurs(n) || out != nil && !last.Counted {
			continue
		}
		b, err := lookBefore(h, n)
		if err != nil {
			h.Log.Say("%s is not what ran before: %v", n, err)
			continue
		}
		last, out = n, b
	}
	return out
}

func lookBefore(h *host.Host, n bls.Name) (*before, error) {
	c, image, err := h.ContractOf(n)
	if err != nil {
		return nil, err
	}
	s, named := layout.FindSlot(h.Table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	if !s.Valid() || !named {
		return nil, errors.New("no slot holds its content")
	}
	return &before{s, c, image}, nil
}

// otherSlot is what the disk says of the slot that does not run.
func otherSlot(h *host.Host, last *before) upper.Other {
	if last != nil {
		return upper.Other{System: last.contract.Root().String(), Starts: true}
	}
	s := h.State.Booted.Other()
	system, err := layout.Find(h.Table, s.System())
	tree, terr := layout.Find(h.Table, s.Verity())
	if err != nil || terr != nil {
		return upper.Other{}
	}
	return upper.Other{System: spelled(system.UUID, tree.UUID).String()}
}

// spelled is the root hash that the partitions of a slot spell. Where they name no
// system, no state has it as its name.
func spelled(system, tree gpt.GUID) (root verity.Root) {
	copy(root[:16], system[:])
	copy(root[16:], tree[:])
	return root
}

// errNotBefore is for state whose system's image neither slot holds.
var errNotBefore = errors.New("no slot holds the image of the system that the state is from")

// openBefore opens and mounts the image that the state to be taken over lies on, and
// returns where. Its root hash is vouched for by the state's name, on the encrypted root
// partition; that of a system without one by its UKI, which this machine must have
// signed: somebody who could choose the image could have any file of /etc reset.
func openBefore(h *host.Host, from upper.Source, last *before) (string, error) {
	switch {
	case from.System == "" && !from.Unnamed:
		return "", nil
	case last == nil, !from.Unnamed && last.contract.Root().String() != from.System:
		return "", errNotBefore
	}
	if from.Unnamed && h.List != nil && rootpart.Enforces(h.FirmwareKeys) {
		if err := rootpart.CheckOwn(last.image, h.FirmwareKeys, h.List); err != nil {
			return "", fmt.Errorf("its UKI: %w", err)
		}
	}
	if bytes.Equal(last.contract.RootHash, h.Contract.RootHash) {
		return h.Path(host.SystemDirectory), nil // both releases have the same image, which is open
	}
	return mountBefore(h, last)
}

func mountBefore(h *host.Host, last *before) (string, error) {
	open, err := hw.Verity{Name: BeforeDevice, Params: last.contract.VerityParams(), Root: last.contract.Root()}.InSlot(h.Disks, h.Disk, h.Table, last.slot)
	if err != nil {
		return "", err
	}
	device, err := h.Mapper.OpenVerity(open)
	if err != nil {
		return "", errors.Join(err, dropBefore(h))
	}
	where := h.Path(beforeDirectory)
	if err := h.Mounts.Mount(device, where, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return "", errors.Join(err, dropBefore(h))
	}
	return where, nil
}

// dropBefore removes the device; one that was not made is fine.
func dropBefore(h *host.Host) error {
	if err := h.Mapper.Close(BeforeDevice); err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	return nil
}

// closeBefore lets go of the image: the fetcher writes to its slot next.
func closeBefore(h *host.Host) {
	err := h.Mounts.Unmount(h.Path(beforeDirectory))
	if err == nil {
		err = h.Mapper.Close(BeforeDevice)
	}
	if err != nil {
		h.Log.Say("the image of the system before stays open: %v", err)
	}
}
