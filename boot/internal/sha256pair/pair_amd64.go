package sha256pair

// accelerated: the processor has the SHA extensions, and what else the assembly
// uses.
var accelerated = hasSHA()

// hasSHA asks the processor (CPUID leaves 1 and 7).
//
//go:noescape
func hasSHA() bool

// compressTwo runs the compression function (FIPS 180-4, section 6.2.2) over n
// message blocks of 64 bytes of each of two messages.
//
//go:noescape
func compressTwo(state *[2][8]uint32, a, b *byte, n int)
