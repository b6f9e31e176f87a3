//go:build cgo

package worker

// withCgo: this program was linked with the C library. What the sandbox says to all
// threads at once is then left to libcap's psx, which looks them up in /proc by the
// number that the process has for itself, and never ends in a PID namespace.
const withCgo = true
