#include "textflag.h"

// The round constants (FIPS 180-4, section 4.2.2).
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256

// Turns the bytes of each of four words round.
DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $16

// func hasSHA() bool
TEXT ·hasSHA(SB), NOSPLIT, $0-1
	MOVB $0, ret+0(FP)
	XORL AX, AX
	CPUID
	CMPL AX, $7
	JLT  no
	MOVL $1, AX
	XORL CX, CX
	CPUID
	ANDL $0x00080200, CX // SSSE3, SSE4.1
	CMPL CX, $0x00080200
	JNE  no
	MOVL $7, AX
	XORL CX, CX
	CPUID
	BTL  $29, BX
	JCC  no
	MOVB $1, ret+0(FP)
no:
	RET

// The extensions keep the eight state words as ABEF and CDGH. One message uses
// X1 and X2 for them and X3 to X6 for the schedule's last 16 words, the other X7
// and X8, and X9 to X12.

// LOAD reads four words of a message.
#define LOAD(from, W) \
	MOVOU  from, W \
	PSHUFB X14, W

// ROUNDS does four rounds with the words W. The sums are made in X13, since X0,
// which SHA256RNDS2 takes them from, would have each group wait for the last.
#define ROUNDS(i, W, ABEF, CDGH) \
	MOVO        W, X13           \
	PADDD       (16*i)(AX), X13  \
	MOVO        X13, X0          \
	SHA256RNDS2 X0, ABEF, CDGH   \
	PSHUFD      $0x0e, X13, X0   \
	SHA256RNDS2 X0, CDGH, ABEF

// SCHEDULE puts the next four words in the place of W0, the oldest.
#define SCHEDULE(W0, W1, W2, W3, T) \
	SHA256MSG1 W1, W0    \
	MOVO       W3, T     \
	PALIGNR    $4, W2, T \
	PADDD      T, W0     \
	SHA256MSG2 W3, W0

// FIRST does rounds 4i to 4i+3 of both messages with words of the messages,
#define FIRST(i, V, W) \
	LOAD((16*i)(SI), V)  \
	LOAD((16*i)(DI), W)  \
	ROUNDS(i, V, X1, X2) \
	ROUNDS(i, W, X7, X8)

// and NEXT with words that the schedule gives.
#define NEXT(i, V0, V1, V2, V3, W0, W1, W2, W3) \
	SCHEDULE(V0, V1, V2, V3, X13) \
	SCHEDULE(W0, W1, W2, W3, X15) \
	ROUNDS(i, V0, X1, X2)         \
	ROUNDS(i, W0, X7, X8)

#define NEXT0(i) NEXT(i, X3, X4, X5, X6, X9, X10, X11, X12)
#define NEXT1(i) NEXT(i, X4, X5, X6, X3, X10, X11, X12, X9)
#define NEXT2(i) NEXT(i, X5, X6, X3, X4, X11, X12, X9, X10)
#define NEXT3(i) NEXT(i, X6, X3, X4, X5, X12, X9, X10, X11)

// PACK turns ABCD and EFGH into ABEF and CDGH.
#define PACK(from, ABEF, CDGH) \
	MOVOU   (from)(BX), ABEF     \
	MOVOU   (from+16)(BX), CDGH  \
	PSHUFD  $0xb1, ABEF, ABEF    \
	PSHUFD  $0x1b, CDGH, CDGH    \
	MOVO    ABEF, X13            \
	PALIGNR $8, CDGH, ABEF       \
	PBLENDW $0xf0, X13, CDGH

// UNPACK is the reverse.
#define UNPACK(to, ABEF, CDGH) \
	PSHUFD  $0x1b, ABEF, ABEF    \
	PSHUFD  $0xb1, CDGH, CDGH    \
	MOVO    ABEF, X13            \
	PBLENDW $0xf0, CDGH, ABEF    \
	PALIGNR $8, X13, CDGH        \
	MOVOU   ABEF, (to)(BX)       \
	MOVOU   CDGH, (to+16)(BX)

// func compressTwo(state *[2][8]uint32, a, b *byte, n int)
TEXT ·compressTwo(SB), NOSPLIT, $64-32
	MOVQ state+0(FP), BX
	MOVQ a+8(FP), SI
	MOVQ b+16(FP), DI
	MOVQ n+24(FP), DX
	LEAQ constants<>(SB), AX
	MOVOU bigEndian<>(SB), X14
	PACK(0, X1, X2)
	PACK(32, X7, X8)

next:
	MOVOU X1, 0(SP)
	MOVOU X2, 16(SP)
	MOVOU X7, 32(SP)
	MOVOU X8, 48(SP)
	FIRST(0, X3, X9)
	FIRST(1, X4, X10)
	FIRST(2, X5, X11)
	FIRST(3, X6, X12)
	NEXT0(4)
	NEXT1(5)
	NEXT2(6)
	NEXT3(7)
	NEXT0(8)
	NEXT1(9)
	NEXT2(10)
	NEXT3(11)
	NEXT0(12)
	NEXT1(13)
	NEXT2(14)
	NEXT3(15)
	MOVOU 0(SP), X13
	PADDD X13, X1
	MOVOU 16(SP), X13
	PADDD X13, X2
	MOVOU 32(SP), X13
	PADDD X13, X7
	MOVOU 48(SP), X13
	PADDD X13, X8
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ DX
	JNZ  next

	UNPACK(0, X1, X2)
	UNPACK(32, X7, X8)
	RET
