package orghalogenosupdate

//go:generate go run github.com/varlink/go/cmd/varlink-go-interface-generator org.halogenos.Update.varlink
