package release

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/trialreport"
	"halogenos.internal/builder/reports"
)

// A fleet is a thousand machines, the directory that their web server shows, and the one
// into which it takes reports.
type fleet struct {
	t       *testing.T
	random  *rand.Rand
	release Manage
	plan    Plan
	reports string
	server  *httptest.Server

	// fails and tells are shares: of the machines on which the release fails, and of those
	// that report. The make of a machine decides on which it fails.
	fails, tells float64

	has     map[int]bool // the machines that have taken the release
	said    []string     // what was decided, where it is not to wait
	stopped bool         // the last of it
}

const machines = 1000

// newFleet starts the server of a directory, with release 2 at its first wave.
func newFleet(t *testing.T, o Manage, fails, tells float64, seed uint64) *fleet {
	t.Helper()
	f := &fleet{t: t, random: rand.New(rand.NewPCG(seed, 0)), release: o, reports: t.TempDir(), fails: fails, tells: tells, has: make(map[int]bool)}
	f.plan = usualPlan
	f.plan.Every, f.plan.Least = 24*time.Hour, 3
	f.must(Promote(t.Context(), o, 2, manifest.Stable, Rollout{true, f.plan.Waves[0]}))
	shown := http.FileServer(http.Dir(string(o.Directory)))
	f.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			shown.ServeHTTP(w, r)
			return
		}
		text, err := io.ReadAll(io.LimitReader(r.Body, trialreport.MaxSize))
		if err == nil {
			err = os.WriteFile(filepath.Join(f.reports, filepath.Base(r.URL.Path)), text, 0o644)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	t.Cleanup(f.server.Close)
	return f
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// ask has the server answer, and returns what it says.
func (f *fleet) ask(how, name, body string) []byte {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), how, f.server.URL+"/"+name, strings.NewReader(body))
	f.must(err)
	answer, err := http.DefaultClient.Do(r)
	f.must(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	f.must(err)
	if answer.StatusCode != http.StatusOK {
		f.t.Fatalf("%s %s: %s, %s", how, name, answer.Status, text)
	}
	return text
}

// checks is what a machine does once a day: it asks for the manifest, takes the release where
// its turn has come, and tells how that went where its owner lets it.
func (f *fleet) checks(machine int, now time.Time) {
	f.t.Helper()
	m, err := manifest.Parse(f.ask(http.MethodGet, manifest.FileName, ""))
	f.must(err)
	e, _, err := m.Resolve(manifest.Stable)
	f.must(err)
	if e.Version != 2 || !e.Includes(fmt.Appendf(nil, "machine %d", machine)) {
		return
	}
	f.has[machine] = true
	r := trialreport.Report{
		Format: trialreport.Format, ImageID: "test-os", Arch: "x86_64", Version: 2, From: 1, Channel: manifest.Stable, Result: trialreport.Kept,
		Vendor: "Maker", Product: "Laptop", Day: now.UTC().Format(time.DateOnly), Seconds: 60 + f.random.Int64N(60),
	}
	if f.random.Float64() < f.fails {
		r.Result, r.Cause, r.Product = trialreport.Failed, trialreport.Unhealthy, "Tablet"
	}
	if f.random.Float64() >= f.tells {
		return
	}
	text, err := r.Encode()
	f.must(err)
	name, err := r.FileName(strings.NewReader(fmt.Sprintf("%012d", machine)))
	f.must(err)
	f.ask(http.MethodPut, name, string(text))
}

// day lets all machines ask, each at an hour of its own, and has the next wave decided each
// hour, as the manual page of halogen-reports has it done by a timer.
func (f *fleet) day() {
	f.t.Helper()
	var at [24][]int
	for machine := range machines {
		hour := machine * 7 % len(at)
		at[hour] = append(at[hour], machine)
	}
	for _, those := range at {
		f.release.Now = f.release.Now.Add(time.Hour)
		for _, machine := range those {
			if !f.has[machine] {
				f.checks(machine, f.release.Now)
			}
		}
		c, err := reports.Read(f.t.Context(), f.reports)
		f.must(err)
		decided, err := Advance(f.t.Context(), f.release, manifest.Stable, f.plan, func(v contract.Version) (kept, failed int) {
			n := c.Of("x86_64", "test-os", v, manifest.Stable)
			return n.Kept, n.Failed
		})
		f.must(err)
		switch {
		case strings.Contains(decided, " goes from "):
			f.said = append(f.said, decided)
		case strings.Contains(decided, " STOPPED: "):
			f.said, f.stopped = append(f.said, decided), true
		}
	}
}

// A thousand machines ask one web server, each once a day: a good release reaches all of
// them by waves, and one that fails on every fourth or on all is stopped before a twentieth
// has it. HALOGEN_PAGE names a directory that gets the pages of how the releases fared.
func TestThousandMachines(t *testing.T) {
	w := newWorld(t)
	var o Options
	for v := contract.Version(1); v <= 2; v++ {
		o = w.options(w.build(v, "", ""), "")
		w.publish(o)
	}
	release := w.manage(o)
	for i, tt := range []struct {
		name                string
		fails, tells        float64
		days                int
		atLeast, noMoreThan int
	}{
		{"good, half report", 0, 0.5, 10, machines, machines},
		{"good, nobody reports", 0, 0, 2, 1, machines/20 - 1},
		{"fails everywhere", 1, 1, 10, 1, machines/20 - 1},
		{"fails on every fourth", 0.25, 1, 10, 1, machines/20 - 1},
		{"fails on every fourth, half report", 0.25, 0.5, 10, 1, machines/20 - 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t, release, tt.fails, tt.tells, uint64(i+2))
			for days := 0; days < tt.days && len(f.has) < machines && !f.stopped; days++ {
				f.day()
			}
			if f.stopped {
				f.day() // nobody takes it any more
			}
			t.Logf("%d machines have it:\n%s", len(f.has), strings.Join(f.said, "\n"))
			if len(f.has) < tt.atLeast || len(f.has) > tt.noMoreThan {
				t.Errorf("%d of %d machines have taken it, want %d to %d", len(f.has), machines, tt.atLeast, tt.noMoreThan)
			}
			if f.stopped != (tt.fails > 0) {
				t.Errorf("stopped: %v", f.stopped)
			}
			f.page(tt.name)
			release.Now = f.release.Now.Add(24 * time.Hour)
		})
	}
}

// page draws how the release fared.
func (f *fleet) page(name string) {
	f.t.Helper()
	c, err := reports.Read(f.t.Context(), f.reports)
	f.must(err)
	var page strings.Builder
	f.must(c.HTML(&page))
	if n := c.Of("x86_64", "test-os", 2, manifest.Stable); n.Failed > 0 && !strings.Contains(page.String(), fmt.Sprintf("%d of %[1]d on Maker Tablet", n.Failed)) {
		f.t.Errorf("the page does not say on what it fails:\n%s", page.String())
	}
	if directory := os.Getenv("HALOGEN_PAGE"); directory != "" {
		f.must(os.WriteFile(filepath.Join(directory, strings.ReplaceAll(name, " ", "-")+".html"), []byte(page.String()), 0o644))
	}
}
