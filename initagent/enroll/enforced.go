package enroll

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/secureboot"
)

// A Difference is one way in which the firmware does not enforce what this
// machine enrolled.
type Difference struct {
	Variable secureboot.Variable
	What     string
	Cure     string
}

// String returns what is different.
func (d Difference) String() string { return d.What }

// Enforced compares the firmware with what was enrolled; no difference means
// that it starts exactly what this machine's db allows. It explains, and
// protects nothing by itself: who controls the firmware controls these answers,
// and it is PCR 7 that decides about keys.
func Enforced(s State, wanted secureboot.Wanted) []Difference {
	var out []Difference
	add := func(v secureboot.Variable, cure, format string, args ...any) {
		out = append(out, Difference{v, fmt.Sprintf(format, args...), cure})
	}
	if s.SetupMode == On {
		add(secureboot.SetupMode, "enroll the keys again, if it was you who cleared them", "the firmware is in Setup Mode, so it starts anything")
	}
	if s.SecureBoot != On {
		add(secureboot.SecureBoot, "switch Secure Boot on in the firmware's setup", "Secure Boot is %s", s.SecureBoot)
	}
	if s.AuditMode == On {
		add(secureboot.AuditMode, "leave Audit Mode in the firmware's setup", "the firmware is in Audit Mode, so it notes what it should refuse and starts it")
	}
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		out = append(out, compare(v, s.of(v), wanted.Of(v))...)
	}
	return out
}

func compare(v secureboot.Variable, now *Stored, want secureboot.Database) []Difference {
	const cure = "clear the Secure Boot keys in the firmware's setup and let this machine enroll its own again"
	if now.Problem != nil {
		if v == secureboot.DBX && len(want) == 0 {
			return nil
		}
		return []Difference{{v, now.Problem.Error(), cure}}
	}
	var out []Difference
	missing, extra := want.Without(now.Content), now.Content.Without(want)
	switch {
	case len(missing) > 0 && len(now.Content) == 0:
		out = append(out, Difference{v, fmt.Sprintf("%s is gone", v), cure})
	case len(missing) > 0:
		out = append(out, Difference{v, fmt.Sprintf("%s lacks %s", v, missing), cure})
	}
	if len(extra) > 0 && v != secureboot.DBX {
		out = append(out, Difference{v, fmt.Sprintf("%s also holds %s", v, extra), cure})
	}
	if len(now.Content) > 0 && !now.authenticated() && v != secureboot.DBX {
		out = append(out, Difference{v, fmt.Sprintf("%s has attributes %#x, which let anybody change it", v, now.Attributes), cure})
	}
	return out
}

// Live is what the firmware holds.
func (s *State) Live() secureboot.Wanted {
	return secureboot.Wanted{PK: s.PK.Content, KEK: s.KEK.Content, DB: s.DB.Content, DBX: s.DBX.Content}
}

// Foreign says how the firmware's keys are not those of the list, so that somebody
// else could have things started, or have changed; nothing where they are. Each
// entry of PK, KEK and db must be in the list. dbx may hold more, since that only
// takes away. What came from others may be missing from KEK and db; what is this
// machine's own may not, and neither may a revocation.
func Foreign(s State, l *secureboot.List) string {
	var out []string
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		now, want := s.of(v), l.Wanted.Of(v)
		missing := slices.DeleteFunc(want.Without(now.Content), func(e secureboot.Entry) bool {
			return v != secureboot.DBX && l.Origin(e) != ""
		})
		switch extra := now.Content.Without(want); {
		case now.Problem != nil && (v != secureboot.DBX || len(want) > 0):
			out = append(out, now.Problem.Error())
		case len(extra) > 0 && v != secureboot.DBX:
			out = append(out, fmt.Sprintf("%s holds %s", v, named(extra)))
		case len(missing) > 0:
			out = append(out, fmt.Sprintf("%s lacks %s", v, named(missing)))
		case len(now.Content) > 0 && !now.authenticated():
			out = append(out, fmt.Sprintf("%s has attributes %#x, which let anybody change it", v, now.Attributes))
		}
	}
	return strings.Join(out, "; ")
}

// named tells entries apart that look alike: by their owner, and by their hash.
func named(d secureboot.Database) string {
	const most = 8
	var out []string
	for i, e := range d {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(d)-most))
			break
		}
		text := e.String()
		if e.Type != secureboot.TypeSHA256 {
			text += fmt.Sprintf(" (SHA-256 %x)", sha256.Sum256(e.Data))
		}
		out = append(out, fmt.Sprintf("%s of owner %s", text, e.Owner))
	}
	return strings.Join(out, ", ")
}

func describe(differences []Difference) string {
	var parts []string
	for _, d := range differences {
		parts = append(parts, d.What)
	}
	return strings.Join(parts, "; ")
}
