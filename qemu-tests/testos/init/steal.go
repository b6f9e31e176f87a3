package main

import (
	"io"
	"os"

	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"halogenos.internal/qemu-tests/testos/theft"
)

// steal tries to unseal what the volume on a device is opened by.
func steal(_ *system, a []string) (any, error) {
	f, err := os.Open(a[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	sealed, err := theft.Sealed(f, size)
	if err != nil {
		return nil, err
	}
	t, err := linuxtpm.Open("/dev/tpmrm0")
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return theft.Try(t, sealed)
}
