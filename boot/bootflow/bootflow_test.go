package bootflow

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

var update = flag.Bool("update", false, "rewrite the steps of the golden traces")

// A trace is a text file: what is given, what goes wrong, and the steps that
// follow with their reasons. A step that is not said to fail succeeds.
type trace struct {
	head  string // everything up to and with the line "steps:"
	steps string
	state State
	facts Facts
	fails map[Kind]string
	// enrollAgain: anyone who types the recovery key wants the firmware to get its keys.
	enrollAgain bool
	// askedAfter is the step in which somebody asks for the console.
	askedAfter Kind
}

var (
	tables = map[string]Table{"unknown": TableUnknown, "foreign": TableForeign, "new": TableNew, "damaged": TableDamaged, "complete": TableComplete, "installer": TableInstaller, "read-only": TableReadOnly}
	keyss  = map[string]Keys{"unneeded": KeysUnneeded, "missing": KeysMissing, "enrolled": KeysEnrolled, "foreign": KeysForeign, "off": KeysOff, "finished": KeysFinished}
	roots  = map[string]Root{"absent": RootAbsent, "blank": RootBlank, "unfinished": RootUnfinished, "locked": RootLocked, "open": RootOpen, "damaged": RootDamaged}
	// What the boot journal says about a trial in the other slot that has used up its
	// tries.
	verdicts = map[string]Verdict{"unfit": Unfit, "interrupted": Interrupted}
	flags    = map[string]func(*State, *Facts){
		"tree-named":      func(s *State, f *Facts) { s.TreeNamed = true },
		"trial":           func(s *State, f *Facts) { s.Trial = true },
		"fallback":        func(s *State, f *Facts) { s.Fallback = true },
		"console-asked":   func(s *State, f *Facts) { f.ConsoleAsked = true },
		"key-noted":       func(s *State, f *Facts) { f.KeyNoted = true },
		"phrase-noted":    func(s *State, f *Facts) { f.PhraseNoted = true },
		"pin":             func(s *State, f *Facts) { f.PIN = true },
		"no-tpm":          func(s *State, f *Facts) { f.TPMPresent = false },
		"replaced":        func(s *State, f *Facts) { f.Replaced = true },
		"stage":           func(s *State, f *Facts) { f.Stage = true },
		"policy":          func(s *State, f *Facts) { f.Policy = true },
		"manager":         func(s *State, f *Facts) { f.Manager = true },
		"modules":         func(s *State, f *Facts) { f.Modules = true },
		"module-key":      func(s *State, f *Facts) { f.ModuleKey = true },
		"db-written":      func(s *State, f *Facts) { f.DBWritten = true },
		"revoke":          func(s *State, f *Facts) { f.Revoke = true },
		"updater":         func(s *State, f *Facts) { f.Updater = true },
		"grow":            func(s *State, f *Facts) { f.Grow = true },
		"grown":           func(s *State, f *Facts) { f.Grown = true },
		"root-lost":       func(s *State, f *Facts) { f.RootLost = "redo fails" },
		"esp-differs":     func(s *State, f *Facts) { f.ESPDiffers = true },
		"answered":        func(s *State, f *Facts) { f.Answered = true },
		"planted-gone":    func(s *State, f *Facts) { f.PlantedGone = true },
		"secret-asked":    func(s *State, f *Facts) { f.SecretAsked = true },
		"others":          func(s *State, f *Facts) { f.Others = true },
		"first-start":     func(s *State, f *Facts) { f.FirstStart = true },
		"extensions":      func(s *State, f *Facts) { f.Extensions = true },
		"state-asked":     func(_ *State, f *Facts) { f.StateAsked = true },
		"unsettled":       func(s *State, f *Facts) { f.Unsettled = true },
		"reset-asked":     func(s *State, f *Facts) { f.ResetAsked = true },
		"reset-begun":     func(s *State, f *Facts) { f.ResetBegun = true },
		"keep-home-asked": func(s *State, f *Facts) { f.KeepHomeAsked = true },
		"keep-home-begun": func(s *State, f *Facts) { f.KeepHomeBegun = true },
		"released":        func(s *State, f *Facts) { f.Released = true },
	}
)

func parseTrace(t *testing.T, text string) *trace {
	t.Helper()
	head, steps, ok := strings.Cut(text, "steps:\n")
	if !ok {
		t.Fatal("no line \"steps:\"")
	}
	tr := &trace{head: head + "steps:\n", steps: steps, fails: map[Kind]string{}}
	tr.facts = Facts{SecureBoot: contract.Required, TPM: contract.Required, TPMPresent: true, Epoch: 1}
	for line := range strings.Lines(head) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, "fails "):
			name, cause, _ := strings.Cut(line[len("fails "):], ": ")
			tr.fails[kindNamed(t, name)] = cause
		case strings.HasPrefix(line, "problem "):
			tr.facts.Problem = line[len("problem "):]
		case strings.HasPrefix(line, "tpm-fault "):
			tr.facts.TPMPresent, tr.facts.TPMFault = false, line[len("tpm-fault "):]
		case strings.HasPrefix(line, "planted "):
			tr.facts.Planted = line[len("planted "):]
		case strings.HasPrefix(line, "noted "):
			tr.facts.Noted = line[len("noted "):]
		case strings.HasPrefix(line, "asked after "):
			tr.askedAfter = kindNamed(t, line[len("asked after "):])
		default:
			for _, word := range strings.Fields(line) {
				tr.set(t, word)
			}
		}
	}
	return tr
}

func kindNamed(t *testing.T, name string) Kind {
	t.Helper()
	for k, row := range kinds {
		if row.name == name {
			return Kind(k)
		}
	}
	t.Fatalf("there is no step %q", name)
	return 0
}

func (tr *trace) set(t *testing.T, word string) {
	t.Helper()
	name, value, has := strings.Cut(word, "=")
	ok := true
	switch name {
	case "table":
		tr.state.Table, ok = tables[value]
	case "keys":
		tr.state.Keys, ok = keyss[value]
	case "root":
		tr.state.Root, ok = roots[value]
	case "booted":
		ok = tr.state.Booted.UnmarshalText([]byte(value)) == nil
	case "epoch", "floor":
		n, err := strconv.ParseUint(value, 10, 64)
		ok = err == nil
		if name == "epoch" {
			tr.facts.Epoch = n
		} else {
			tr.state.Floor = n
		}
	case "enroll-again":
		tr.enrollAgain = true
	case "verdict":
		tr.facts.Verdict, ok = verdicts[value]
	case "secure-boot":
		tr.facts.SecureBoot = contract.Requirement(value)
	case "tpm":
		tr.facts.TPM = contract.Requirement(value)
	default:
		var set func(*State, *Facts)
		if set, ok = flags[word]; ok && !has {
			set(&tr.state, &tr.facts)
		}
	}
	if !ok {
		t.Fatalf("cannot read %q", word)
	}
}

// apply is what the machine does with a step: it keeps what was done, and
// decides nothing.
func (tr *trace) apply(k Kind) {
	s, f := &tr.state, &tr.facts
	_, failed := tr.fails[k]
	switch k {
	case Enroll, MakeRoot: // they make secrets first of all
		f.Released = true
	case Unlock, AskPIN, AskKey:
		f.Released = f.Released || !failed
	}
	f.ConsoleAsked = f.ConsoleAsked || tr.askedAfter == k && k != Recovery
	if cause, fails := tr.fails[k]; fails {
		f.Cause = cause
		if !f.Note(k, Failed) {
			f.Problem = fmt.Sprintf("%s: %s", k, cause)
		}
		return
	}
	f.Note(k, Done)
	switch k {
	case Heal, Partition:
		s.Table = TableComplete
		if k == Partition && s.Root == RootAbsent {
			s.Root = RootBlank
		}
	case MakeTree:
		s.Booted, s.TreeNamed = layout.SlotA, true
	case Enroll:
		s.Keys = KeysFinished
	case MakeRoot:
		s.Root, f.RootMade = RootOpen, true
	case Unlock, AskPIN:
		s.Root = RootOpen
	case KeepHome:
		f.FirstStart = true
	case GrowSlots:
		f.Grown = true
	case AskKey:
		s.Root, f.EnrollAgain = RootOpen, tr.enrollAgain && s.Keys == KeysMissing
	}
}

func (tr *trace) run() string {
	var out strings.Builder
	for range 40 {
		step := Next(tr.state, tr.facts)
		fmt.Fprintf(&out, "%-13s %s\n", step.Kind, step.Reason)
		switch step.Kind {
		case Recovery, Condemn, Reboot, SwitchRoot, RecoverNext:
			return out.String()
		}
		tr.apply(step.Kind)
	}
	return out.String() + "and does not end\n"
}

// FAULTS 38, 43, 46, 51
func TestTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tr := parseTrace(t, string(text))
			got := tr.run()
			if *update {
				if err := os.WriteFile(file, []byte(tr.head+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != tr.steps {
				t.Errorf("steps are\n%swant\n%s", got, tr.steps)
			}
		})
	}
}

// Whatever is found, a boot ends, and it never hands over a system that was not
// verified, whose epoch is under the floor, or whose root could not be opened; and
// it opens no console once a secret was in memory. FAULTS 85
func TestEveryBootEnds(t *testing.T) {
	cases := 0
	each(func(s State, f Facts, fails map[Kind]string) {
		cases++
		tr := &trace{state: s, facts: f, fails: fails, enrollAgain: cases%2 == 0}
		out := tr.run()
		if strings.Contains(out, "does not end") {
			t.Fatalf("%+v %+v fails %v:\n%s", s, f, fails, out)
		}
		if s.Root >= RootLocked && strings.Contains(out, MakeRoot.String()) {
			t.Fatalf("%+v %+v fails %v makes a root partition where there is one:\n%s", s, f, fails, out)
		}
		if tr.facts.Released && strings.Contains("\n"+out, "\n"+Recovery.String()+" ") {
			t.Fatalf("%+v %+v fails %v opens a console beside a secret:\n%s", s, f, fails, out)
		}
		if !strings.Contains(out, SwitchRoot.String()) {
			return
		}
		switch {
		case tr.facts.Came(Reset) == Done,
			tr.facts.Came(Reset) == Failed && f.ResetBegun,
			tr.facts.Came(OpenVerity) != Done,
			tr.facts.Came(MountState) != Done,
			tr.state.Root == RootOpen && f.FirstStart && tr.facts.Came(CarryState) != Done,
			tr.state.Root == RootOpen && f.StateAsked && tr.facts.Came(RestoreState) != Done,
			f.Epoch < s.Floor,
			f.Problem != "",
			tr.state.Root == RootOpen && f.KeepHomeBegun && tr.facts.Came(KeepHome) != Done,
			s.Root == RootLocked && tr.facts.Came(Unlock) != Done && tr.facts.Came(AskKey) != Done,
			s.Root == RootDamaged:
			t.Fatalf("%+v %+v fails %v hands over:\n%s", s, f, fails, out)
		}
	})
	t.Logf("%d boots", cases)
}

// Nothing is looked for in the system once something lies over its image: whatever is found
// then, the boot hands over.
func TestNothingAfterMountState(t *testing.T) {
	for name, set := range flags {
		if slices.Contains([]string{"console-asked", "planted-gone", "trial", "fallback", "tree-named", "no-tpm"}, name) {
			continue // what ends a boot, or is not a request
		}
		s := State{Table: TableComplete, Keys: KeysEnrolled, Root: RootOpen, Booted: layout.SlotA, TreeNamed: true}
		f := Facts{SecureBoot: contract.Required, TPM: contract.Required, TPMPresent: true}
		for _, kind := range []Kind{OpenVerity, Unlock, MountState} {
			f.Note(kind, Done)
		}
		set(&s, &f)
		if step := Next(s, f); step.Kind != SwitchRoot {
			t.Errorf("%s: %s (%s)", name, step.Kind, step.Reason)
		}
	}
}

// each calls visit with every combination of conditions and of one failing step.
func each(visit func(State, Facts, map[Kind]string)) {
	for table := TableUnknown; table <= TableInstaller; table++ {
		for keys := KeysUnneeded; keys <= KeysFinished; keys++ {
			for root := RootAbsent; root <= RootDamaged; root++ {
				for bits := range 1 << 10 {
					bit := func(n int) bool { return bits>>n&1 == 1 }
					s := State{Table: table, Keys: keys, Root: root, TreeNamed: bit(0), Trial: bit(1), Fallback: bit(2)}
					if bit(3) {
						s.Booted = layout.SlotB
					}
					if bit(4) {
						s.Floor = 2
					}
					f := Facts{Epoch: 1, SecureBoot: contract.Required, TPM: contract.Required, TPMPresent: bit(5), Upkeep: Upkeep{Stage: bit(6), Policy: bit(7)}}
					if bit(8) {
						f.SecureBoot = contract.Optional
					}
					f.SecretAsked, f.KeyNoted, f.PhraseNoted = bit(6) != bit(7), bit(6) != bit(4), bit(4) != bit(7)
					f.FirstStart, f.Unsettled = bit(6) == bit(7), bit(6)
					f.ResetAsked, f.Others = bit(6) != bit(3), bit(6) != bit(2)
					f.ResetBegun, f.StateAsked = bit(7), bit(7) != bit(3)
					f.KeepHomeAsked, f.KeepHomeBegun = bit(4) != bit(6), bit(3) && bit(8)
					if bit(9) {
						if table != TableComplete || keys > KeysMissing || root < RootLocked {
							continue // upkeep depends on nothing of this
						}
						f.ESPDiffers, f.Verdict = true, Verdict(1+bits>>6&1)
					}
					for fail := Recovery; fail <= SwitchRoot; fail++ {
						visit(s, f, map[Kind]string{fail: "cause"})
					}
					f.Released = true // as where the TPM released the secret, and the volume did not open
					visit(s, f, map[Kind]string{Unlock: "cause", AskKey: "cause"})
					f.PIN = true
					visit(s, f, nil)
					visit(s, f, map[Kind]string{AskPIN: "cause", AskKey: "cause"})
				}
			}
		}
	}
}
