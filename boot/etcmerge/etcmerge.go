// Package etcmerge plans the upper directory of an overlay for a new image: a
// three-way merge of what the old image had (base), what the new one has (theirs) and
// what this machine changed over the old one (the upper directory, ours).
//
// What only one side changed is taken from that side. What both changed is merged: the
// account files entry by entry, other text line by line, permissions, owner and
// extended attributes each by itself. Where that clashes, this machine's stays, and a
// [Conflict] is listed until somebody decides.
//
// The package writes nothing and follows no link: it reads three trees ([Tree]) and
// returns what the new upper directory holds ([Result]). It refuses trees that are too
// large, and names that no directory can have.
//
// What differs from an image is the plan of a merge with itself:
// Plan(ctx, image, image, upper, options) keeps what was changed and takes the rest.
package etcmerge

import (
	"context"
	"errors"
	"io"
	"time"

	"halogenos.internal/boot/contract"
)

// Bounds. Plan returns an error beyond MaxEntries, MaxDepth, MaxRead and MaxAccounts; a
// file larger than MaxText is not merged, but taken or kept whole.
const (
	MaxEntries = 500_000 // entries looked at, over the three trees
	MaxDepth   = 256     // directories within one another
	MaxText    = 1 << 20 // bytes of a file that is merged by line
	MaxRead    = 4 << 30 // bytes of files compared
	// MaxAccounts bounds an account file in bytes: some 200,000 users. One that is not
	// merged would leave the image's files to the accounts that have their numbers here.
	MaxAccounts = 16 << 20
	// maxContent bounds the bytes of merged files that a plan holds.
	maxContent = 64 << 20
)

// A Type is what an entry is. The zero value is none.
type Type uint8

// The types of entries.
const (
	Regular Type = iota + 1
	Directory
	Link
	CharDevice
	BlockDevice
	Pipe
	Socket
	Whiteout // of an upper directory alone: it hides what lies below
)

// An Entry describes a file without its content, as lstat does.
type Entry struct {
	Type     Type
	Mode     uint32 // permissions with setuid, setgid and sticky bit: at most 0o7777
	UID, GID uint32
	Size     int64     // of a regular file, in bytes
	ModTime  time.Time // not compared; carried over with the content
	Target   string    // of a link
	Rdev     uint64    // of a device
	// Opaque: of an upper directory: what lies below does not show through.
	Opaque bool
	// Xattrs are extended attributes: access control lists, capabilities, labels. The
	// overlay's own (trusted.overlay.*, user.overlay.*) are interpreted by the reader
	// and not among them.
	Xattrs map[string]string
}

// A Tree is a directory that is read: an image's, or an overlay's upper directory.
// Paths are relative and separated by slashes; "." is the top. No method follows a
// link, in any element of a path. An entry that is missing is [io/fs.ErrNotExist].
//
// An upper directory that refers to the image's by another name or for its data (the
// overlay's redirect and metacopy attributes) is resolved by the reader or refused.
type Tree interface {
	// Entry describes what lies at a path.
	Entry(path string) (Entry, error)
	// Names lists a directory, in any order, without "." and "..".
	Names(dir string) ([]string, error)
	// Open reads a regular file from its beginning.
	Open(path string) (io.ReadCloser, error)
}

// Options say which releases a merge is between.
type Options struct {
	From contract.Version // of base; 0 where it is not known
	To   contract.Version // of theirs
	// Masked: upper lay over several images, one after the other, and hid what later
	// ones brought. What base has and upper lacks may never have shown here: it proves no
	// deletion.
	Masked bool
	// Other: the directory is not /etc, so that the names of its files mean nothing.
	Other bool
	// Etc is the plan of /etc, for another directory: it says whose number is whose. nil
	// where /etc is not merged.
	Etc *Result
}

// ErrBase marks errors of reading base. Who gets it may plan again without.
var ErrBase = errors.New("the old image cannot be read")

// An Action says what becomes of an entry of the upper directory.
type Action string

// The actions. All but Take put something into the new upper directory.
const (
	Take     Action = "take"     // the image's shows: nothing is written
	Keep     Action = "keep"     // this machine's stays
	Merge    Action = "merge"    // both sides' changes are in it
	Clash    Action = "conflict" // both changed it: this machine's stays and is listed
	Parent   Action = "parent"   // a directory that is there for what lies in it
	Generate Action = "generate" // the list of conflicts itself
)

// A Source says where the content of a regular file comes from.
type Source uint8

// The sources. The zero value is for what has no content.
const (
	FromUpper   Source = iota + 1 // the old upper directory, same path
	FromImage                     // theirs, same path
	FromBase                      // base, same path
	FromContent                   // Change.Content
)

// A Change is one step of the plan. The steps of a plan are in order: a directory
// comes before what lies in it, and each path comes once.
type Change struct {
	Path   string
	Action Action
	Reason string // for people, in a few words
	// Entry is what is made, zero for Take. Its Size is that of the content. Who makes
	// it sets the owner before the mode, since chown clears setuid bits, and the times
	// of a directory last.
	Entry   Entry
	From    Source // of a regular file
	Content []byte // where it comes FromContent
}

// A Result is the plan of a new upper directory: it holds what Changes say and nothing
// else.
type Result struct {
	Changes []Change
	// Conflicts are those of this merge, and those of earlier ones that nobody has
	// decided, in order of their paths.
	Conflicts []Conflict
	// Notes say what was decided without anybody's help.
	Notes []Note
	// Users and Groups lead from the image's number to this machine's, for names that
	// have another one here, and to 0 for those that are not here and whose number is
	// somebody else's. Who copies files out of the image translates their owners
	// ([Owners.Translate]); files that stay in the image belong to somebody else.
	Users, Groups map[uint32]uint32

	owners owners

	// For [Result.LeaveOut].
	list    List
	leftOut []LeftOut // of the old list
	room    *room
	dirTime time.Time
}

// Plan merges. Without base (nil) all that upper holds counts as this machine's, but
// for the account files, which are merged by entry in any case.
//
// Conflicts that upper's own list holds are carried forward unless they are decided
// (see [Undecided]), and so is what it says was left out, until somebody has seen it. The
// plan writes the list to [ListPath] where there is something to list.
//
// Plan checks ctx between files and within long comparisons: an error of it is returned as
// it is. What is too much to merge (see the bounds) is kept whole and listed.
func Plan(ctx context.Context, base, theirs, upper Tree, options Options) (*Result, error) {
	return newPlanner(ctx, base, theirs, upper, options).plan()
}
