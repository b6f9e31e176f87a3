package main

import (
	"flag"
	"fmt"

	"halogenos.internal/builder/files"
	"halogenos.internal/uroot-cmds/ota/server"
)

// readerFlags say how web servers are reached, as Proxy= and CA= of ota.conf do on a
// machine.
type readerFlags struct{ proxy, ca string }

func (r *readerFlags) add(f *flag.FlagSet) {
	f.StringVar(&r.proxy, "proxy", "", "`URL` of the proxy to a server, http://HOST:PORT; none goes without the one that the environment names")
	f.StringVar(&r.ca, "ca", "", "`FILE` with certificates of authorities (PEM) that count beside the system's")
}

// maxCA bounds the certificates, in bytes.
const maxCA = 1 << 20

// options are those of the reader; note is told why a request is made again.
func (r readerFlags) options(note func(string)) (server.Options, error) {
	o := server.Options{Proxy: r.proxy, Note: note}
	if r.ca == "" {
		return o, nil
	}
	var err error
	if o.CA, err = files.Read(r.ca, maxCA); err == nil && len(o.CA) == 0 {
		err = fmt.Errorf("%s is empty", r.ca)
	}
	if err != nil {
		return o, fmt.Errorf("--ca: %w", err)
	}
	return o, nil
}
