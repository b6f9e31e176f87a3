package policy

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
)

func sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

func sample() Boot {
	return Boot{PCR4: sum("4"), PCR7: sum("7"), PCR11: sum("11")}
}

// calculate is go-tpm's offline calculation, an implementation apart from ours.
func calculate(t *testing.T, commands ...tpm2.PolicyCommand) Digest {
	t.Helper()
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range commands {
		if err := cmd.Update(c); err != nil {
			t.Fatal(err)
		}
	}
	return Digest(c.Hash().Digest)
}

func TestDigestsAgreeWithGoTPM(t *testing.T) {
	b := sample()
	b.PCR12 = sum("12")
	h := sha256.New()
	var which []uint
	for _, n := range Bound() {
		v, err := b.Value(n)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(v[:])
		which = append(which, uint(n))
	}
	boot := tpm2.PolicyPCR{
		PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
			Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(which...),
		}}},
	}
	if got, want := b.branch(true), calculate(t, boot); got != want {
		t.Errorf("PolicyPCR %s, go-tpm has %s", got, want)
	}
	list := []Digest{b.Branch(), sum("other")}
	or := tpm2.PolicyOr{PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: list[0][:]}, {Buffer: list[1][:]}}}}
	got, err := OR(list)
	if want := calculate(t, boot, or); err != nil || got != want {
		t.Errorf("PolicyOR %s, %v; go-tpm has %s", got, err, want)
	}
	name := NameOf([]byte("public"))
	nv := tpm2.NamedHandle{Handle: 0x01800000, Name: tpm2.TPM2BName{Buffer: name[:]}}
	if got, want := AuthorizeNV(name), calculate(t, boot, or, tpm2.PolicyAuthorizeNV{NVIndex: nv}); got != want {
		t.Errorf("PolicyAuthorizeNV %s, go-tpm has %s", got, want)
	}
	if got, want := UnsealAlone(AuthorizeNV(name)), calculate(t, tpm2.PolicyAuthorizeNV{NVIndex: nv}, tpm2.PolicyCommandCode{Code: tpm2.TPMCCUnseal}); got != want {
		t.Errorf("PolicyCommandCode %s, go-tpm has %s", got, want)
	}
	if got, want := Signed(name), calculate(t, tpm2.PolicySigned{AuthObject: nv}); got != want {
		t.Errorf("PolicySigned %s, go-tpm has %s", got, want)
	}
}

func TestPolicyRefuses(t *testing.T) {
	for name, values := range map[string][]Value{
		"no PCR":         nil,
		"not ascending":  {{PCR: 11}, {PCR: 7}},
		"the same twice": {{PCR: 7}, {PCR: 7}},
		"negative":       {{PCR: -1}},
		"24":             {{PCR: 24}},
	} {
		if d, err := PCR(values); err == nil {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := OR(nil); err == nil {
		t.Error("OR of nothing")
	}
	if _, err := OR(make([]Digest, 9)); err == nil {
		t.Error("OR of nine")
	}
	if one, err := OR([]Digest{{1}}); err != nil {
		t.Error(err)
	} else if two, _ := OR([]Digest{{1}, {1}}); one != two {
		t.Error("a single branch is not doubled")
	}
}

func TestBootCheck(t *testing.T) { // FAULTS 70
	ones := pcr.Digest{}
	for i := range ones {
		ones[i] = 0xff
	}
	good := sample()
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set        func(*Boot)
		unmeasured bool
	}{
		"PCR 7 zero":      {func(b *Boot) { b.PCR7 = pcr.Digest{} }, true},
		"PCR 11 zero":     {func(b *Boot) { b.PCR11 = pcr.Digest{} }, true},
		"PCR 11 ones":     {func(b *Boot) { b.PCR11 = ones }, true},
		"PCR 15 extended": {func(b *Boot) { b.PCR15[0] = 1 }, false},
	} {
		b := sample()
		c.set(&b)
		if err := b.Check(); err == nil || errors.Is(err, ErrUnmeasured) != c.unmeasured {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := good.Value(8); err == nil {
		t.Error("PCR 8 has a value")
	}
	if err := good.Set(8, ones); err == nil {
		t.Error("PCR 8 can be set")
	}
}

func TestExplain(t *testing.T) {
	good := sample()
	other := Boot{PCR4: sum("4"), PCR7: sum("7"), PCR11: sum("11, another release")}
	branches := []Digest{good.branch(true), other.branch(true)}
	with := func(set func(*Boot)) Boot {
		b := good
		set(&b)
		return b
	}
	for name, c := range map[string]struct {
		now   Boot
		known []Boot
		want  []int
	}{
		"a credential":                   {with(func(b *Boot) { b.PCR12 = sum("x") }), nil, []int{12}},
		"an addon and an extension":      {with(func(b *Boot) { b.PCR12, b.PCR13 = sum("x"), sum("y") }), nil, []int{12, 13}},
		"unsealed before":                {with(func(b *Boot) { b.PCR15 = sum("x") }), nil, []int{15}},
		"Secure Boot, nothing known":     {with(func(b *Boot) { b.PCR7 = sum("off") }), nil, nil},
		"Secure Boot, last boot known":   {with(func(b *Boot) { b.PCR7 = sum("off") }), []Boot{good}, []int{7}},
		"all but PCR 13":                 {Boot{good.PCR4, sum("a"), sum("b"), sum("c"), pcr.Digest{}, sum("d")}, []Boot{good}, []int{7, 11, 12, 15}},
		"the boot manager":               {with(func(b *Boot) { b.PCR4 = sum("x") }), []Boot{good}, []int{4}},
		"the nearer one counts":          {Boot{PCR4: sum("4"), PCR7: sum("7"), PCR11: sum("?"), PCR15: sum("x")}, []Boot{{PCR7: sum("7"), PCR11: sum("no")}, other}, []int{11, 15}},
		"values known from two boots":    {with(func(b *Boot) { b.PCR7, b.PCR11 = sum("?"), sum("?") }), []Boot{{PCR7: sum("7")}, {PCR11: sum("11")}}, []int{7, 11}},
		"a known boot that is not right": {with(func(b *Boot) { b.PCR7 = sum("off") }), []Boot{{PCR7: sum("no")}}, nil},
	} {
		e := Explain(Bound(), branches, c.now, c.known)
		if !slices.Equal(e.PCRs, c.want) {
			t.Errorf("%s: PCRs %v, want %v", name, e.PCRs, c.want)
		}
		if len(e.PCRs) > 0 && !slices.Contains(branches, e.Allowed.branch(true)) {
			t.Errorf("%s: %+v is not allowed", name, e.Allowed)
		}
		for _, n := range c.want {
			if !strings.Contains(e.String(), "PCR "+strconv.Itoa(n)) {
				t.Errorf("%s: %q does not name PCR %d", name, e, n)
			}
		}
	}
}

func TestNameText(t *testing.T) {
	n := NameOf([]byte("x"))
	var back Name
	if err := back.UnmarshalText([]byte(n.String())); err != nil || back != n {
		t.Errorf("%s, %v", back, err)
	}
	for _, bad := range []string{"", n.String()[2:], "zz" + n.String()[2:], "0004" + n.String()[4:]} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
