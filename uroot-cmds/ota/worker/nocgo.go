//go:build !cgo

package worker

const withCgo = false // Go's runtime speaks to its own threads
