// Package iosystemdsysupdate is the interface io.systemd.SysUpdate of Varlink, which generate.go
// has made of its description.
package iosystemdsysupdate

//go:generate go run github.com/varlink/go/cmd/varlink-go-interface-generator io.systemd.SysUpdate.varlink
