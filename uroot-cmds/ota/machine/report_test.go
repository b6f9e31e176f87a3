package machine

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/trialreport"
	"halogenos.internal/uroot-cmds/ota/settings"
)

// A letterbox takes reports.
type letterbox struct {
	*httptest.Server
	mu   sync.Mutex
	got  map[string]string
	code int
}

func newLetterbox(t *testing.T) *letterbox {
	l := &letterbox{got: map[string]string{}, code: http.StatusCreated}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.code == http.StatusCreated {
			l.got[r.Method+" "+r.URL.Path] = string(body)
		}
		w.WriteHeader(l.code)
	}))
	t.Cleanup(l.Close)
	return l
}

// Nothing leaves a machine whose owner has not said so, and then each update is told of
// once, with nothing that names the machine.
func TestReport(t *testing.T) {
	w, box := newWorld(t), newLetterbox(t)
	w.write("sys/class/dmi/id/sys_vendor", []byte("QEMU\n"))
	w.write("sys/class/dmi/id/product_name", []byte("Standard PC\n"))
	w.write("sys/class/dmi/id/product_serial", []byte("SECRET-1\n"))
	w.write(settings.ImageFile, []byte("ReportTo="+box.URL+"/os\nReport=yes\n"))
	w.write(settings.OwnerFile, []byte("Report=yes\n")) // an image's /etc is seen there, too
	if got, err := w.m.Telling(); err != nil || got.Report != nil || got.Allowed || got.To != box.URL+"/os" {
		t.Errorf("before any update: %+v, %v", got, err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w.journal(journal.Entry{Time: now, Kind: journal.Staged, Version: 2}, journal.Entry{Time: now, Boot: "SECRET-2", Kind: journal.Boot, Version: 2, Trial: true},
		journal.Entry{Time: now.Add(time.Minute), Kind: journal.Blessed, Version: 2, Reason: "SECRET-3"})
	got, err := w.m.SendReport(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "ota report --on") || got.Told || len(box.got) > 0 {
		t.Errorf("not allowed, and the image says yes: %+v, %v, %v", got, err, box.got)
	}
	must(t, w.m.AllowReports(true))
	box.code = http.StatusForbidden
	if got, err := w.m.SendReport(t.Context(), nil); err == nil || got.Told {
		t.Errorf("a server that refuses: %+v, %v", got, err)
	}
	box.code = http.StatusCreated
	for range 2 { // once
		if got, err := w.m.SendReport(t.Context(), nil); err != nil || !got.Told {
			t.Fatalf("allowed: %+v, %v", got, err)
		}
	}
	if len(box.got) != 1 {
		t.Fatalf("the server has %v", box.got)
	}
	for name, text := range box.got {
		r, err := trialreport.Parse([]byte(text))
		if err != nil || r.Version != 2 || r.Result != trialreport.Kept || r.Channel != "stable" || r.Vendor != "QEMU" || r.Product != "Standard PC" || r.Seconds != 60 || strings.Contains(name+text, "SECRET") {
			t.Errorf("%s: %s, %v", name, text, err)
		}
		if !strings.HasPrefix(name, "PUT /os/test-os-2-") {
			t.Errorf("its name is %s", name)
		}
	}
	must(t, w.m.AllowReports(false))
	w.journal(journal.Entry{Time: now, Kind: journal.Staged, Version: 3}, journal.Entry{Time: now, Kind: journal.Failed, Version: 3})
	if got, err := w.m.SendReport(t.Context(), nil); err == nil || got.Told || len(box.got) > 1 {
		t.Errorf("allowed no more: %+v, %v", got, err)
	}
}

// The owner agrees to a server: another one that an update's image names is told nothing.
func TestReportToAnother(t *testing.T) {
	w, box, other := newWorld(t), newLetterbox(t), newLetterbox(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w.journal(journal.Entry{Time: now, Kind: journal.Staged, Version: 2}, journal.Entry{Time: now, Kind: journal.Blessed, Version: 2})
	if err := w.m.AllowReports(true); err == nil || !strings.Contains(err.Error(), "ReportTo=") {
		t.Errorf("allowed to tell nobody: %v", err)
	}
	w.write(settings.ImageFile, []byte("ReportTo="+box.URL+"/os\n"))
	must(t, w.m.AllowReports(true))
	w.write(settings.ImageFile, []byte("ReportTo="+other.URL+"/os\n"))
	got, err := w.m.SendReport(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "`ota report --on` allows that") || got.Allowed || got.AllowedBefore != box.URL+"/os" || len(other.got) > 0 {
		t.Errorf("another server: %+v, %v, %v", got, err, other.got)
	}
	must(t, w.m.AllowReports(true))
	if got, err := w.m.SendReport(t.Context(), nil); err != nil || !got.Told || got.AllowedBefore != "" || len(other.got) != 1 || len(box.got) > 0 {
		t.Errorf("allowed again: %+v, %v, %v", got, err, other.got)
	}
}
