//go:build !(goexperiment.runtimesecret && linux && (amd64 || arm64))

package secretmem

// Do calls f, and erases nothing: this program was built without
// GOEXPERIMENT=runtimesecret.
func Do(f func()) { f() }

// Enabled reports whether this program erases anything at all.
func Enabled() bool { return false }

// Inside reports whether a Do is on the stack of this goroutine, which nobody
// knows here.
func Inside() bool { return false }
