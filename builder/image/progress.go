package image

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Progress tells a person what a build is doing: a line when a step has taken
// noticeably long already, and a line with the time it took when it is done.
type Progress struct {
	mu sync.Mutex
	w  io.Writer
}

// NewProgress writes to w, a line at a time.
func NewProgress(w io.Writer) *Progress { return &Progress{w: w} }

const noticeable = 2 * time.Second

// Note writes a line.
func (p *Progress) Note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "halogen: "+format+"\n", args...)
}

// Step starts a step; the function it returns ends it.
func (p *Progress) Step(name string) (done func(result string)) {
	start := time.Now()
	slow := time.AfterFunc(noticeable, func() { p.Note("%s ...", name) })
	return func(result string) {
		slow.Stop()
		if result != "" {
			result = ", " + result
		}
		p.Note("%s: %.1f s%s", name, time.Since(start).Seconds(), result)
	}
}
