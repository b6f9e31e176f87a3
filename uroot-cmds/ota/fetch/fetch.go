// Package fetch brings a release into a slot: the system image straight into its
// partition, the small files into a directory.
//
// It refuses every byte that the signed release.json does not vouch for, writes
// nowhere else than it was told, and holds a bounded amount of memory whatever
// the release and the server are like. It needs no privileges but the open
// files it is given.
//
// There is no list of what was done so far. What a slot holds is compared with
// the block index each time, so that neither a power cut nor a kill leaves
// anything to be wrong about: a block that is in place is never fetched again,
// and one that is not is never taken for it.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
)

const (
	// parallel is how many ranges are in flight.
	parallel = 4
	// maxRange and maxGap bound a request: its bytes, and the bytes that are
	// fetched in vain to save another one. The gap is too small for a block that
	// is in place but for one that packs to nothing; between two Debian releases
	// a larger one saves one request of a hundred.
	maxRange = blockindex.UsualLimit
	maxGap   = blockindex.UsualGap
)

// Phase says what is going on.
type Phase string

// The phases.
const (
	Checking  Phase = "checking"  // what is there already
	Copying   Phase = "copying"   // from the running system's slot
	Patching  Phase = "patching"  // what the running system's slot has
	Fetching  Phase = "fetching"  // from the server
	Verifying Phase = "verifying" // building the verity tree
)

// Progress is how far a phase of a file is, in bytes; of one that is dealt with in
// parts, a phase of the part that File names.
type Progress struct {
	Phase   Phase  `json:"phase"`
	File    string `json:"file"`
	Done    int64  `json:"done"`
	Total   int64  `json:"total"`
	Fetched int64  `json:"fetched"` // from the server so far, of all files
}

// A Result says where the release came from, in bytes.
type Result struct {
	Fetched int64 `json:"fetched"`           // from the server
	Copied  int64 `json:"copied"`            // from the running system
	Patched int64 `json:"patched,omitempty"` // made of what the running system has
	Kept    int64 `json:"kept"`              // were in place
}

// A Source is what the machine has of the release before: the content of its
// other slot. What is copied is checked like what is fetched.
type Source struct {
	System, Tree io.ReaderAt
	Blocks       uint64
	Salt         []byte
	// UKI opens the running UKI; nil where there is none to be had.
	UKI func() (io.ReadCloser, int64, error)
}

// offered is what a fetch knows of the patches from the running system.
type offered struct {
	table   *patch.Table // nil where there are none
	asked   bool         // for the table
	damaged []int64      // groups of it that are not what was signed, by their places
	bytes   int64        // of it and its signature
}

// A Job is one release to be brought into one slot.
type Job struct {
	Server    server.Transport
	Archive   string // its name on the server
	Found     *Found
	Self      *offer.Self
	Directory *os.Root // that the small files go to
	System    block.Device
	Tree      block.Device
	Source    *Source // nil: everything is fetched
	// Extension: a system extension of the release is fetched, not the release. System is
	// its file then, of its whole size, and Tree is nil.
	Extension *Extension
	// PartBlocks is how many blocks of a file are dealt with at a time, each taking
	// 25 bytes of memory; 0 stands for what suits most machines.
	PartBlocks int
	// Progress and Note may be called by several goroutines.
	Progress func(Progress)
	Note     func(text string)

	head    *archive.Head
	index   *blockindex.Index
	offered offered
	opened  *os.File // that the index is read from
	meter   meter
	result  Result
}

// Run brings the release into the slot. When it has returned without error, all
// of it is there, flushed, and has the root hash that was signed.
func (j *Job) Run(ctx context.Context) (Result, error) {
	defer j.closeIndex()
	err := j.begin()
	if err != nil {
		return Result{}, err
	}
	if j.Extension != nil {
		err = j.bringExtension(ctx)
		j.result.Fetched = j.meter.fetched.Load()
		return j.result, err
	}
	if j.Found.Ranges {
		err = j.byRanges(ctx)
		if errors.Is(err, server.ErrNoRanges) { // one of several behind one name
			err = j.byStream(ctx)
		}
	} else {
		err = j.byStream(ctx)
	}
	if err == nil {
		err = j.finish(ctx)
	}
	j.result.Fetched = j.meter.fetched.Load()
	return j.result, err
}

// begin reads the archive's head, and makes the directory ready for it.
func (j *Job) begin() (err error) {
	j.Found.of = j.Extension
	if j.Self, err = j.Found.Learned(j.Self); err != nil {
		return err
	}
	if j.head, err = j.Found.head(j.Self); err != nil {
		return err
	}
	// What is left of another release must not be taken for this one's.
	return j.tidy()
}

// byRanges fetches only what the machine lacks. Cut at any point, each small file is
// either a part, whose blocks are compared again, or has its name and the right
// SHA-256; the image is compared by blocks; and nothing counts before release.json is
// there, which comes last.
func (j *Job) byRanges(ctx context.Context) error {
	if err := j.fetchIndex(ctx); err != nil {
		return err
	}
	small, err := j.smallFiles(ctx)
	if err != nil {
		return err
	}
	uki, err := j.Directory.Open(small[0].at)
	if err != nil {
		return err
	}
	defer uki.Close() // it was only read
	// Their digests take one core for a while, in which the image arrives.
	filling, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	compared := make(chan error, 1)
	go func() {
		err := j.compare(small)
		if err != nil {
			cancel(err)
		}
		compared <- err
	}()
	err = j.fill(filling, release.ImageFile, j.System, j.imageSource(uki), true)
	if compareErr := <-compared; compareErr != nil {
		return compareErr
	}
	if err != nil {
		return err
	}
	return j.refill(ctx, small)
}

// checkUKI refuses a UKI of another key as soon as it is there, before the image
// is fetched. name is its name so far.
func (j *Job) checkUKI(name string) error {
	f, err := j.Directory.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return j.Self.UKI(j.head.Release, f)
}

// imageSource is what the image's blocks can be copied from: the running system, and the new
// UKI, which has the kernel that the image has as a file. uki is nil where nothing is copied
// yet.
func (j *Job) imageSource(uki io.ReaderAt) *source {
	r := &joined{second: uki}
	s := j.Source
	copies := s != nil && s.System != nil && s.Tree != nil && string(s.Salt) == string(j.head.Release.Salt)
	if copies {
		r.first, r.blocks = s.System, int(s.Blocks)
	}
	return &source{r: r, have: func(ctx context.Context, p *blockindex.Plan) error {
		var err error
		if copies {
			err = p.HaveTree(ctx, s.Tree, s.Blocks)
		}
		return errors.Join(err, j.haveUKI(p, r.blocks))
	}}
}

// haveUKI tells a plan of the new UKI's blocks, which are counted from first on.
func (j *Job) haveUKI(p *blockindex.Plan, first int) error {
	file, ok := j.index.File(release.UKIFile)
	if !ok {
		return fmt.Errorf("block index has no file %s", release.UKIFile)
	}
	return p.HaveFile(file, first)
}

// joined is two sources, one after the other.
type joined struct {
	first  io.ReaderAt
	blocks int // of it
	second io.ReaderAt
}

// ReadAt implements io.ReaderAt. It does not go on from one source to the other.
func (s *joined) ReadAt(p []byte, off int64) (int, error) {
	end := int64(s.blocks) * blockindex.BlockSize
	if off < end {
		return s.first.ReadAt(p[:min(int64(len(p)), end-off)], off)
	}
	if s.second == nil {
		return 0, io.EOF
	}
	return s.second.ReadAt(p, off-end)
}

// ErrOther says that the server has another archive than a moment ago.
var ErrOther = errors.New("the server's archive is another one than a moment ago: it may be publishing; run this again later")

// explain says what an error of the server's means here.
func explain(err error) error {
	switch {
	case errors.Is(err, server.ErrChanged):
		return fmt.Errorf("%w (%w)", ErrOther, err)
	case errors.Is(err, server.ErrSlow):
		return fmt.Errorf("%w: what has arrived is kept; run this again later and it goes on from there", err)
	}
	return err
}
