// Package orghalogenosupdate is the interface org.halogenos.Update of Varlink, which generate.go
// has made of its description.
package orghalogenosupdate

//go:generate go run github.com/varlink/go/cmd/varlink-go-interface-generator org.halogenos.Update.varlink
