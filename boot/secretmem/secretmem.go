// Package secretmem runs code whose memory is erased afterwards. It is a thin
// layer over [runtime/secret], which is an experiment of Go 1.26 on Linux, amd64
// and arm64, and exists only in programs that were built with
// GOEXPERIMENT=runtimesecret. It derives, holds and checks nothing.
//
// # What it promises
//
// After [Do] returns, also by a panic, nothing that f and the functions it
// called left behind is in the stack of this goroutine or in a register.
// Everything that they allocated on the heap is marked: it is overwritten when the garbage
// collector frees it. [Collect] runs the collector, which otherwise runs when it
// likes. So after
//
//	secretmem.Do(f)
//	secretmem.Collect()
//
// the temporary copies that a library made, which nobody could reach to overwrite
// them, are gone.
//
// # What it does not promise
//
//   - Memory that was allocated before: a buffer of the caller's, a global
//     variable, an object of a [sync.Pool] (those of fmt and of math/big among
//     them). Overwrite it with clear; print and format no secret.
//   - Other goroutines: one that f starts is not in this mode, and neither is one
//     that receives a value from f. f does its work itself.
//   - What stays reachable: a result, an error, a panic's value. An allocation
//     that leaves [Do] is still erased when it is freed, so a secret may be
//     returned as a slice or a pointer and used in the next Do. It must be
//     overwritten (clear, Wipe) as soon as it is not needed. An array or a
//     struct that is returned by value is a copy on the caller's stack.
//   - A slice that is appended to, and a string that is built, outside of Do:
//     the new copy is an ordinary allocation.
//   - Memory from mmap, buffers of the kernel (pipes, page cache, what a TPM
//     driver keeps), swap and hibernation.
//   - The addresses of secrets, and the time that using them takes.
//   - A caller that calls [runtime.Goexit] in f: its stack is erased when the
//     goroutine ends.
//   - A program that is stopped while f runs holds the secret. Read-protect it
//     (no core dumps, not dumpable).
//
// Each allocation in f costs an entry in a list of the runtime's under one lock,
// and is overwritten as a whole: make large or many allocations that hold no
// secret outside.
//
// # How to use it
//
// A secret is born, used and overwritten within one Do where that is possible:
//
//	key, err := secretmem.Get(func() ([]byte, error) { return unseal(tpm) })
//
// is for the other cases. Calls may be nested; the memory is erased when the
// innermost returns, what is marked stays marked. Errors that leave Do must not
// quote a secret.
//
// # How to build
//
// `make` sets GOEXPERIMENT=runtimesecret for everything that it builds and
// tests, and stops where the toolchain does not have it. Without it the package
// compiles (so do plain go test and an editor), Do only calls f, and [Enabled]
// is false. The builder packs no program of the machine that was built so.
package secretmem

import (
	"runtime"
	"runtime/metrics"
	"time"
)

// Try runs f as Do does and returns its error.
func Try(f func() error) (err error) {
	Do(func() { err = f() })
	return err
}

// Get runs f as Do does and returns its results. The memory of a secret among
// them is erased when it is freed; the caller overwrites it before that.
func Get[T any](f func() (T, error)) (result T, err error) {
	Do(func() { result, err = f() })
	return result, err
}

// Collect frees, and so erases, what was allocated in [Do] and can no longer be
// reached. It takes milliseconds: call it once after a number of Do, outside of
// them, where neither stack nor variables hold the secret any more.
//
// It collects twice: what a pool, a finalizer or a cleanup still holds in the
// first collection is freed by the second. crypto/ecdsa, for one, keeps a copy
// of each key until a cleanup of the key has run, which happens in a goroutine of
// the runtime's after the collection; so Collect waits for those.
func Collect() {
	runtime.GC()
	awaitCleanups(time.Second)
	runtime.GC()
}

// awaitCleanups waits, no longer than a limit, until every finalizer and cleanup
// that a collection has queued has run.
func awaitCleanups(limit time.Duration) {
	counts := []metrics.Sample{
		{Name: "/gc/cleanups/queued:cleanups"}, {Name: "/gc/cleanups/executed:cleanups"},
		{Name: "/gc/finalizers/queued:finalizers"}, {Name: "/gc/finalizers/executed:finalizers"},
	}
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		metrics.Read(counts)
		if counts[1].Value.Uint64() >= counts[0].Value.Uint64() && counts[3].Value.Uint64() >= counts[2].Value.Uint64() {
			return
		}
	}
}
