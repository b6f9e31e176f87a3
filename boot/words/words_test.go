package words

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

// catalogue are the files with the English texts.
var catalogue = []string{"texts.go", "cures.go", "help.go", "installer.go", "installerlines.go", "questions.go"}

// wrapped has the texts whose lines are broken where they are shown.
const wrapped = "installer.go"

// texts are the catalogue's, by their names in the code.
func texts(t *testing.T) map[string]string {
	t.Helper()
	set := token.NewFileSet()
	var of []*ast.File
	for _, name := range catalogue {
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		of = append(of, file)
	}
	p, err := new(types.Config).Check("words", set, of, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range p.Scope().Names() {
		all[name] = constant.StringVal(p.Scope().Lookup(name).(*types.Const).Val())
	}
	return all
}

// flowing are the texts whose lines are broken where they are shown.
func flowing(t *testing.T) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), wrapped, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok {
			text, _ := strconv.Unquote(lit.Value) // it was parsed
			all[text] = true
		}
		return true
	})
	return all
}

// languages are all but English, as their files have them.
func languages(t *testing.T) map[Language]map[string]string {
	t.Helper()
	all := map[Language]map[string]string{}
	for _, code := range Codes() {
		if code == english {
			continue
		}
		text, err := files.ReadFile(code + ".po")
		if err != nil {
			t.Fatal(err)
		}
		if all[Language(code)], err = parse(string(text)); err != nil {
			t.Fatalf("%s.po: %v", code, err)
		}
	}
	if len(all) == 0 {
		t.Fatal("there is no language but English")
	}
	return all
}

var (
	verb = regexp.MustCompile(`%[-+# 0-9.]*(\[[0-9]+\])?[a-zA-Z%]`)
	// fact is what is the same in each language: numbers, commands, paths, names.
	fact = regexp.MustCompile("`[^`]+`|\\b(PCR|TPM|PIN|PINs|dbx?|Secure Boot|Setup Mode|PolicyCommandCode|PTT|fTPM|root|Microsoft|Windows|US|Enter|Tab)\\b|\\B/[a-z]+|\\b[0-9]+\\b")
	// yes is where a text names the key for it.
	yes = regexp.MustCompile(`\b(but|Type) y\b`)
)

// A language has each text, and no other; each says the same of numbers, names and commands, with
// what is put in at the same places, and asks for the key that it takes.
func TestLanguages(t *testing.T) {
	t.Parallel()
	all := texts(t)
	for l, has := range languages(t) {
		known := map[string]bool{}
		for name, text := range all {
			known[text] = true
			translated := has[text]
			if translated == "" {
				t.Errorf("%s.po has nothing for %s:\nmsgid %s", l, name, strconv.Quote(text))
				continue
			}
			if a, b := verb.FindAllString(text, -1), verb.FindAllString(translated, -1); !slices.Equal(a, b) {
				t.Errorf("%s: %s has the verbs %q, and in English %q", l, name, b, a)
			}
			for _, f := range facts(text) {
				if !strings.Contains(plain(verb.ReplaceAllString(translated, "")), f) {
					t.Errorf("%s: %s says nothing of %s", l, name, f)
				}
			}
			for _, of := range []func(string) string{before, after} {
				if a, b := of(text), of(translated); a != b {
					t.Errorf("%s: %s has %q at an end, and in English %q", l, name, b, a)
				}
			}
			if key := l.Text(YesKey); yes.MatchString(text) && !regexp.MustCompile(`\b`+key+`\b`).MatchString(translated) {
				t.Errorf("%s: %s does not name the key %s", l, name, key)
			}
		}
		for text := range has {
			if !known[text] {
				t.Errorf("%s.po has a text that English has not, or not any more: %q", l, text)
			}
		}
	}
}

// facts are those of an English text that a translation has to have.
func facts(text string) (all []string) {
	for _, f := range fact.FindAllString(verb.ReplaceAllString(text, ""), -1) {
		all = append(all, plain(strings.TrimSuffix(f, "s")))
	}
	return all
}

// plain has the names that German writes with hyphens and capitals as English does.
func plain(text string) string {
	return strings.ToLower(strings.Join(strings.Fields(strings.ReplaceAll(text, "-", " ")), " "))
}

func before(text string) string { return text[:len(text)-len(strings.TrimLeft(text, " \n"))] }
func after(text string) string  { return text[len(strings.TrimRight(text, " \n")):] }

// A screen has 80 columns and 25 lines, and the font that the kernel starts with the characters
// of code page 437 (drivers/tty/vt/cp437.uni). What is typed behind a question has room for a
// character at least.
func TestScreen(t *testing.T) {
	t.Parallel()
	all, flows := texts(t), flowing(t)
	for l, has := range languages(t) {
		for name, text := range all {
			translated := has[text]
			if _, err := charmap.CodePage437.NewEncoder().String(translated); err != nil {
				t.Errorf("%s: %s: a screen cannot show it: %v", l, name, err)
			}
			for line := range strings.SplitSeq(translated, "\n") {
				if n := utf8.RuneCountInString(line); n > 79 && !flows[text] {
					t.Errorf("%s: %s has a line of %d characters: %s", l, name, n, line)
				}
			}
			if n := strings.Count(translated, "\n"); n > 12 {
				t.Errorf("%s: %s has %d lines, which with what is shown before are too many for a screen", l, name, n)
			}
		}
	}
}

// What is put together of several texts fits as well: the longest of each.
func TestScreenTogether(t *testing.T) {
	t.Parallel()
	for l := range languages(t) {
		none := l.Say(TriesNone, l.Say(InMinutes, 1440))
		notKey := Errorf(NotTheKey, Linef(LookAtGroups, "1, 2, 3, 4, 5, 6, 7"), Errorf(WrongPassphrase))
		cut := l.Text(OrPowerCut)
		for _, text := range []string{
			l.Say(TriedBefore, none), l.Say(WrongPIN, none), l.Say(WrongPIN, l.Say(TriesLeft, 31, l.Say(InMinutes, 1440))),
			l.Say(TryAgain, notKey), l.Say(TryAgain, Errorf(LetterCount, 64, 128)), l.Say(PINTryAgain, Errorf(PINLength, 4, 64)),
			l.Say(WishRefused, l.Text(WishKeys), "reseal --new-secret"), l.Say(SecretAsked, l.Text(WishKeys), "reseal --new-secret"),
			l.Say(Because, l.Text(NothingChanged), Errorf(NoOwnKeys)), l.Say(Because, l.Text(NothingChanged), Errorf(PINNeedsTPM)),
			l.Say(PhraseNotShown, l.Text(PhraseOther)), l.Say(PhraseNotShown, l.Text(PhraseDamaged)),
			l.Text(PhraseKnown) + l.Text(YesOrNo), l.Text(AskAccept) + l.Text(YesOrNo), l.Text(OthersChosen) + l.Text(YesOrNo),
			l.Say(GiveKeys, cut) + l.Text(YesOrNo), l.Say(MakeKeys, cut) + l.Text(YesOrNo), l.Say(GiveKeys, "") + l.Text(YesOrNo),
			l.Say(KeyTitle, l.Text(KeyNameNew)), l.Say(KeyWritten, l.Say(KeyWaitMinutes, 10)), l.Say(KeyGroups, 8, 7, l.Text(KeyBeforeStays)), l.Say(KeyGroupsWrong, 8, 7),
			l.Say(LostProgram, strings.Repeat("f", 64)), l.Say(LetROM, "", [32]byte{}), l.Say(OnTrial, 10),
		} {
			for line := range strings.SplitSeq(text, "\n") {
				if n := utf8.RuneCountInString(line); n > 79 {
					t.Errorf("%s has a line of %d characters: %s", l, n, line)
				}
			}
		}
	}
}

// Each text is said somewhere, no two are the same, and what asks a person has no text of its
// own: it would be English for everybody.
func TestOneCatalogue(t *testing.T) {
	t.Parallel()
	all := texts(t)
	names := map[string]string{}
	for name, text := range all {
		if other := names[text]; other != "" {
			t.Errorf("%s and %s are the same text", name, other)
		}
		names[text] = name
	}
	root := filepath.Join("..", "..")
	set := token.NewFileSet()
	for _, directory := range []string{"boot", "initagent", "builder/install", "builder/halogen", "uroot-cmds"} {
		err := filepath.WalkDir(filepath.Join(root, directory), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				return err
			}
			asks := asksAtStart(path)
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && fmt.Sprint(s.X) == "words" || file.Name.Name == "words" {
					if ok {
						delete(all, s.Sel.Name)
					} else if i, is := n.(*ast.Ident); is && !slices.Contains(catalogue, filepath.Base(path)) {
						delete(all, i.Name)
					}
				}
				if call, ok := n.(*ast.CallExpr); ok && asks {
					ownText(t, set, call)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range all {
		t.Errorf("nothing says %s", name)
	}
}

// asksAtStart reports whether a file asks somebody before the system runs.
func asksAtStart(path string) bool {
	return slices.ContainsFunc([]string{"prompt", "recoverykey", "unlock", "setup", "reset", "rootpart", "console"}, func(p string) bool {
		return strings.Contains(filepath.ToSlash(path), "initagent/"+p+"/")
	})
}

var letters = regexp.MustCompile(`[A-Za-z]{2}`)

// ownText complains about a text that is given to a console as it is.
func ownText(t *testing.T, set *token.FileSet, call *ast.CallExpr) {
	s, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Print", "PrintSecret", "Ask", "AskKey", "AskYes"}, s.Sel.Name) {
		return
	}
	for _, arg := range call.Args {
		ast.Inspect(arg, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && letters.MatchString(lit.Value) {
				t.Errorf("%s: %s belongs in boot/words/texts.go", set.Position(lit.Pos()), lit.Value)
			}
			return true
		})
	}
}

func TestSay(t *testing.T) {
	t.Parallel()
	const german Language = "de"
	cause := errors.New("I/O error")
	wrong := Errorf(NotTheKey, Linef(LookAtGroup, 3), Errorf(WrongPassphrase))
	for _, c := range []struct{ got, want string }{
		{English.Say(LettersTyped, 3, 64), "3 of 64 letters"},
		{german.Say(LettersTyped, 3, 64), "3 von 64 Buchstaben"},
		{text(german, OnceMore), "Noch einmal: "},
		{text(german, "not in the catalogue"), "not in the catalogue"},
		{Language("xx").Text(OnceMore), OnceMore},
		{english, English.Code()},
		{"de", german.Code()},
		{wrong.Error(), "this is not the recovery key of this machine's root partition, or a letter is wrong: look at group 3 (wrong passphrase)"},
		{german.Error(wrong), "das ist nicht der Wiederherstellungsschlüssel der Root-Partition dieses\nRechners, oder ein Buchstabe ist falsch: Gruppe 3 ansehen\n(falsche Passphrase)"},
		{german.Say(TryAgain, Errorf(PINLength, 4, 9)), "eine PIN oder Passphrase hat 4 bis 9 Zeichen.\nVerloren ist nichts: noch einmal versuchen.\n"},
		{English.Error(wrong), wrong.Error()},
		{german.Error(cause), "I/O error"},
		{german.Error(fmt.Errorf("step: %w", wrong)), "step: " + wrong.Error()},
		{Linef(LookAtGroup, 3).String(), ": look at group 3"},
		{English.Line(Linef(LookAtGroup, 3)), ": look at group 3"},
		{german.Line(Linef(LookAtGroup, 3)), ": Gruppe 3 ansehen"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if err := Errorf(KeyNotInForce, cause); !errors.Is(err, cause) {
		t.Errorf("%v does not wrap its cause", err)
	}
	if err := Errorf("%w: %w", wrong, cause); !errors.Is(err, cause) || !errors.Is(err, wrong) {
		t.Errorf("%v does not wrap both", err)
	}
}

// text has a language say a text that need not be in the catalogue.
func text(l Language, text string) string { return l.Text(text) }

// The English key is yes in every language.
func TestYes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		l   Language
		yes []string
		no  []string
	}{
		{English, []string{"y", " Y "}, []string{"", "j", "yes", "n", "z"}},
		{"de", []string{"y", "Y", "j", " J"}, []string{"", "n", "ja", "z"}},
	} {
		for _, answer := range c.yes {
			if !c.l.Yes(answer) {
				t.Errorf("%s: %q is no", c.l.Code(), answer)
			}
		}
		for _, answer := range c.no {
			if c.l.Yes(answer) {
				t.Errorf("%s: %q is yes", c.l.Code(), answer)
			}
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	if got := Codes(); !slices.Contains(got, "de") || !slices.Contains(got, english) || !slices.IsSorted(got) {
		t.Errorf("there are %q", got)
	}
	for code, want := range map[string]Language{"en": English, "de": "de"} {
		if l, err := Find(code); l != want || err != nil {
			t.Errorf("%s: %q, %v", code, l, err)
		}
	}
	for _, code := range []string{"", "xx", "DE", "de.po", "../de", "English"} {
		if _, err := Find(code); err == nil || !strings.Contains(err.Error(), strings.Join(Codes(), ", ")) {
			t.Errorf("%q: %v", code, err)
		}
	}
	for locale, want := range map[string]struct {
		l     Language
		known bool
	}{
		"de_DE.UTF-8": {"de", true}, "de_AT.UTF-8": {"de", true}, "de": {"de", true}, "en_GB.UTF-8": {English, true},
		"de.UTF-8@euro": {"de", true}, "fr_FR.UTF-8": {English, false}, "C.UTF-8": {English, false}, "": {English, false}, "den_CA.UTF-8": {English, false},
	} {
		if l, known := OfLocale(locale); l != want.l || known != want.known {
			t.Errorf("%s: %q, %t", locale, l, known)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := parse("# a comment\nmsgid \"\"\nmsgstr \"Language: xx\\n\"\n\n#. A\nmsgid \"\"\n\"a\\n\"\n\"\\tb\\\"\"\nmsgstr \"c\"\n\"d\"\nmsgid \"e\"\nmsgstr \"\"\n")
	if err != nil || len(got) != 2 || got["a\n\tb\""] != "cd" {
		t.Errorf("%q, %v", got, err)
	}
	for text, want := range map[string]string{
		"\"a\"\n":                        "line 1",
		"msgstr \"a\"\n":                 "line 1",
		"msgid \"a\"\n":                  "has no msgstr",
		"msgid \"a\"\nmsgid \"b\"\n":     "line 2",
		"msgid \"a\nmsgstr \"b\"\n":      "line 1",
		"msgid 'a'\nmsgstr \"b\"\n":      "line 1",
		"msgid `a`\nmsgstr \"b\"\n":      "line 1",
		"msgid\nmsgstr \"b\"\n":          "line 1",
		"msgctxt \"a\"\n":                "line 1",
		"msgid \"a\"\nmsgstr[0] \"b\"\n": "line 2",
		"#, fuzzy\nmsgid \"a\"\n":        "line 1",
		"msgid \"a\"\nmsgstr \"b\"\nmsgid \"a\"\nmsgstr \"c\"\n": "comes twice",
	} {
		if got, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}
