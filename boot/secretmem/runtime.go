//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package secretmem

import "runtime/secret"

// Do calls f and erases what it leaves behind; see the package comment.
//
// A panic of f goes on, as if Do had raised it. That includes panic(nil), which
// a program may make invisible to the runtime (GODEBUG=panicnil=1, the default
// where a go.mod names no version of Go).
func Do(f func()) {
	returned := false
	secret.Do(func() {
		f()
		returned = true
	})
	if !returned {
		panic("panic(nil) in a secretmem.Do")
	}
}

// Enabled reports whether this program erases anything at all.
func Enabled() bool { return true }

// Inside reports whether a Do is on the stack of this goroutine.
func Inside() bool { return secret.Enabled() }
