// Package version says which version of HalogenOS a program was built from.
//
// The linker puts it in (`-X halogenos.internal/boot/version.stamp=...`): the
// machine's commands are built in GOPATH mode, in which Go itself records none. The
// file `describe` beside this one makes it of git.
package version

// Unknown is the version of a program that nobody has stamped: one that `go build`
// made, or `make` of a source tree without git and without HALOGEN_VERSION.
const Unknown = "unknown"

// stamp is set by the linker.
var stamp string

// String returns the version:
//
//	1.2.0                                  the tag v1.2.0
//	1.2.0+20261128233000.9a77c43f0abc      a commit after it, with its time in UTC
//	0+20261128233000.9a77c43f0abc          a commit, where there is no tag
//	1.2.0+20261128233000.9a77c43f0abc.dirty   with changes that are not committed
//	unknown
func String() string {
	if stamp == "" {
		return Unknown
	}
	return stamp
}

// Line is what a program answers to --version.
func Line(program string) string { return program + " " + String() + "\n" }
