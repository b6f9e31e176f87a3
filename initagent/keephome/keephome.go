// Package keephome is how far a reset that keeps /home has come: a note on the root
// partition, which the recovery console begins and a boot carries out. The accounts that
// are kept are in it, since nothing else has them once the rest is deleted.
//
// It refuses a note that it does not understand: who finds one goes on as if there were
// none, and deletes nothing.
package keephome

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// Path is where the root partition has the note.
const Path = rootpart.OwnDirectory + "/keep-home"

// MaxSize bounds the note in bytes: the lines of some 100,000 people.
const MaxSize = 32 << 20

const format = 1

// A Stage is how far it has come.
type Stage string

// The stages.
const (
	Confirmed Stage = "confirmed" // somebody has typed the machine's name
	Deleting  Stage = "deleting"  // the accounts are in the note, and some may be deleted
	Deleted   Stage = "deleted"   // all is, and this machine has no /etc with the accounts yet
)

// A Note is the state of one.
type Note struct {
	Stage Stage `json:"stage"`
	// After names the last start of a system before it ([LastStart]). Once another one has
	// run, what is there is no more what somebody has agreed to delete.
	After string `json:"after,omitempty"`
	// People are the accounts that are kept, but while it is only Confirmed.
	People etcmerge.People `json:"people,omitempty"`
}

type encoded struct {
	Format int `json:"format"`
	Note
}

func (n Note) check() error {
	if !slices.Contains([]Stage{Confirmed, Deleting, Deleted}, n.Stage) {
		return fmt.Errorf("stage %.32q is not known", string(n.Stage))
	}
	for file := range n.People {
		if !slices.Contains(etcmerge.AccountFiles(), file) {
			return fmt.Errorf("%.32q is not an account file", file)
		}
	}
	return nil
}

// Encode returns the note's text.
func (n Note) Encode() ([]byte, error) {
	text, err := json.Marshal(encoded{format, n})
	if err == nil {
		err = n.check()
	}
	if err == nil && len(text) > MaxSize {
		err = fmt.Errorf("the accounts have %d bytes, more than %d", len(text), MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("note of the reset that keeps /home: %w", err)
	}
	return text, nil
}

// Parse reads one.
func Parse(text []byte) (*Note, error) {
	var e encoded
	err := strictjson.Decode(text, &e)
	if err == nil && e.Format != format {
		err = fmt.Errorf("format %d, want %d", e.Format, format)
	}
	if err == nil {
		err = e.check()
	}
	if err != nil {
		return nil, fmt.Errorf("note of a reset that keeps /home: %w", err)
	}
	// What is shown to a person is what is kept, no matter who wrote the note.
	if len(e.People) > 0 {
		e.People, _ = etcmerge.PeopleOf(e.People)
		maps.DeleteFunc(e.People, func(_ string, text []byte) bool { return len(text) == 0 })
	}
	return &e.Note, nil
}

// WhoStays says which accounts are kept, a line for each, and leaves out none, and no group:
// many that somebody has made hide nothing. [Pages] has it for a screen.
func WhoStays(l words.Language, people []etcmerge.Person) string {
	if len(people) == 0 {
		return l.Text(words.NobodyStays)
	}
	var out strings.Builder
	out.WriteString(l.Text(words.TheyStay))
	for _, p := range people {
		out.WriteString(l.Say(words.OneStays, p.Name, p.Number))
		for i, group := range p.Groups {
			fmt.Fprintf(&out, "%s%.64s", map[bool]string{true: l.Text(words.InGroups), false: " "}[i == 0], group)
		}
		out.WriteString("\n")
	}
	return out.String()
}

// A page has pageLines lines of pageWidth bytes, but for words that are longer: a screen has
// room for it below what is said before, and an entry of the journal.
const pageLines, pageWidth = 10, 78

// goesOn is what the further lines of one begin with.
const goesOn = "      "

// Pages are a text in parts for a screen, its lines broken where they are too long.
func Pages(text string) (pages []string) {
	var page strings.Builder
	used := 0
	put := func(line string) {
		page.WriteString(line + "\n")
		if used++; used == pageLines {
			pages, used = append(pages, page.String()), 0
			page.Reset()
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		for len(line) > pageWidth {
			// A space within the indentation is no place to break at.
			at := strings.LastIndex(line[:pageWidth+1], " ")
			if at <= len(goesOn) {
				at = len(goesOn) + strings.Index(line[len(goesOn):]+" ", " ")
			}
			if at == len(line) {
				break
			}
			put(line[:at])
			line = goesOn + line[at+1:]
		}
		put(line)
	}
	if used > 0 {
		pages = append(pages, page.String())
	}
	return pages
}

// mostEntries bounds what the journal gets of a list of accounts: it has 256 KiB for all.
const mostEntries = 64

// Entries are who stays for the journal, a reason for each entry.
func Entries(people []etcmerge.Person) []string {
	pages := Pages(WhoStays(words.English, people))
	more := len(pages) - mostEntries
	pages = pages[:min(mostEntries, len(pages))]
	for i, page := range pages {
		page = strings.NewReplacer(":\n  ", ": ", "\n"+goesOn, " ", "\n  ", "; ", "\n", "").Replace(strings.TrimSpace(page))
		pages[i] = map[bool]string{true: "a reset that keeps /home was confirmed. ", false: "it keeps, too: "}[i == 0] + page
	}
	if more > 0 {
		pages = append(pages, fmt.Sprintf("it keeps more accounts, or groups of them: %d times as much as an entry has were shown", more))
	}
	return pages
}

// RequestName is the file by which the running system asks for one, among what it shares
// with the boot on the encrypted root partition. A variable of the firmware could be written
// by anyone who has the machine in hand and no key: they would get the image's own accounts,
// and the owner's /home with them.
const RequestName = "keep-home"

// Requested is where the root partition has it.
const Requested = rootpart.Shared + "/" + RequestName

// MaxRequest bounds it in bytes.
const MaxRequest = 512

// A Request asks for one.
type Request struct {
	// After names the start that it is asked in ([LastStart]): it does not outlive it.
	After string `json:"after"`
}

type encodedRequest struct {
	Format int `json:"format"`
	Request
}

// Ask leaves a request in the directory that the running system shares with the boot. It is
// one replacement of a file, of which a cut leaves the request or none.
func Ask(directory string) error {
	entries, err := bootinfo.ReadJournal(directory)
	after := LastStart(entries)
	if err == nil && after == "" {
		err = errors.New("the boot journal there does not tell of this start")
	}
	if err == nil && onTrial(entries) {
		err = errors.New("the version that runs is on trial, and such a reset is for one that stays: ask again once it is kept (`ota status` says)")
	}
	var text []byte
	if err == nil {
		text, err = json.Marshal(encodedRequest{format, Request{after}})
	}
	if err == nil {
		err = hw.KeepFile(filepath.Join(directory, RequestName), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("leave the request for the next start in %s: %w", directory, err)
	}
	return nil
}

// onTrial reports whether the last start was that of a trial, which was not blessed since.
func onTrial(entries []journal.Entry) bool {
	for _, e := range slices.Backward(entries) {
		switch e.Kind {
		case journal.Blessed:
			return false
		case journal.Boot:
			return e.Trial
		}
	}
	return false
}

// ParseRequest reads one.
func ParseRequest(text []byte) (*Request, error) {
	var e encodedRequest
	err := strictjson.Decode(text, &e)
	if err == nil && e.Format != format {
		err = fmt.Errorf("format %d, want %d", e.Format, format)
	}
	if err != nil {
		return nil, fmt.Errorf("request for a reset that keeps /home: %w", err)
	}
	return &e.Request, nil
}

// LastStart names the last start of a system by its entry among those of the boot journal,
// oldest first; "" where there is none.
func LastStart(entries []journal.Entry) string {
	for _, e := range slices.Backward(entries) {
		if e.Kind == journal.Boot {
			return e.Boot + " " + e.Time.UTC().Format("2006-01-02T15:04:05Z07:00")
		}
	}
	return ""
}

// Home is the name of /home among the directories that all systems share.
var Home = upper.Name("/home")

// Cleared are the directories of the root partition that lose all but what Stays.
var Cleared = []string{".", upper.Bind, rootpart.Shared, fetchDirectory}

// Modes are the permissions of the directories that the root partition keeps, which root owns:
// anyone else who owned one of them could put in it what the next boot believes.
var Modes = map[string]fs.FileMode{".": 0o755, upper.Bind: 0o755, rootpart.OwnDirectory: 0o700, rootpart.Shared: 0o755, fetchDirectory: 0o755}

// fetchDirectory is what the fetcher shares with the boot, and ReleaseKey in it what it has
// learned of the release key: of revocations, too.
const (
	fetchDirectory = rootpart.Shared + "/fetch"
	ReleaseKey     = fetchDirectory + "/" + release.KeyFile
)

// Stays reports whether the root partition keeps what has a name: /home, and what is this
// machine's own. A state.conf may have a directory in /home for itself. Of what the boot
// shares with the running system it keeps what tells of this machine: answers for a first
// start, what was fetched and what was seen of releases are the running system's words,
// and perhaps an intruder's.
func Stays(name string) bool {
	if own, in := strings.CutPrefix(name, rootpart.Shared+"/"); in {
		return own == journal.Name || own == keynote.Name
	}
	return name == rootpart.OwnDirectory || IsHome(name)
}

// IsHome reports whether a name is that of /home, or of a directory in it that state.conf has
// for itself.
func IsHome(name string) bool {
	own, shared := strings.CutPrefix(name, upper.Bind+"/")
	return shared && (own == Home || strings.HasPrefix(own, Home+"-"))
}
