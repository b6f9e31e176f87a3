package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/trialreport"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/settings"
	"halogenos.internal/uroot-cmds/ota/worker"
)

const (
	// toldFile says which trial the distributor was told of last.
	toldFile = "told.json"
	// allowedFile says that the owner allows reports. It lies in the state directory, because
	// /etc has what the image brings, too: that could allow them in the owner's place.
	allowedFile = "report.json"
)

const (
	toldFormat    = 1
	allowedFormat = 1
)

// allowed is the content of allowedFile.
type allowed struct {
	Format int `json:"format"`
	// To is the server that the owner agreed to, as ReportTo= had it.
	To string `json:"to"`
}

// told is the content of toldFile.
type told struct {
	Format  int                `json:"format"`
	Version contract.Version   `json:"version"`
	Result  trialreport.Result `json:"result"`
	Day     string             `json:"day"`
}

// A Telling is what this machine would tell its distributor of the last update.
type Telling struct {
	// Report is all of it; nil: no update has ended yet.
	Report *trialreport.Report `json:"report"`
	// To is the server, without a password; empty: none is set.
	To string `json:"to"`
	// Allowed: the owner has said so, of this server.
	Allowed bool `json:"allowed"`
	// AllowedBefore is another server that the owner has allowed; it is To no more.
	AllowedBefore string `json:"allowed_before,omitempty"`
	// Told: it was told already.
	Told bool `json:"told"`
}

// Telling says what would be told of the last update. Nothing leaves the machine.
func (m *Machine) Telling() (*Telling, error) {
	r, s, err := m.telling()
	if err != nil {
		return nil, err
	}
	t := &Telling{To: Redacted(s.ReportTo)}
	var a allowed
	there, err := decode(m.state(r, allowedFile), &a)
	switch {
	case err != nil:
		return nil, err
	case !there || a.Format != allowedFormat || a.To == "":
	case a.To == s.ReportTo:
		t.Allowed = true
	default:
		t.AllowedBefore = Redacted(a.To)
	}
	entries, err := bootinfo.ReadJournal(m.state(r))
	if err != nil {
		return nil, fmt.Errorf("read the boot journal: %w", err)
	}
	if t.Report = trialreport.Of(entries); t.Report == nil {
		return t, nil
	}
	t.Report.ImageID, t.Report.Arch, t.Report.Channel = r.Contract.ImageID, r.Contract.Arch, s.Channel
	t.Report.Vendor, t.Report.Product = m.make("sys_vendor"), m.make("product_name")
	var last told
	there, err = decode(m.state(r, toldFile), &last)
	t.Told = err == nil && there && last == t.asTold()
	return t, err
}

func (t *Telling) asTold() told {
	return told{Format: toldFormat, Version: t.Report.Version, Result: t.Report.Result, Day: t.Report.Day}
}

// telling is what Telling and SendReport depend on.
func (m *Machine) telling() (*Running, settings.Settings, error) {
	r, err := m.teller()
	if err != nil {
		return nil, settings.Settings{}, err
	}
	s, err := m.Settings()
	return r, s, err
}

// teller is the running system, where reports can be told of it.
func (m *Machine) teller() (*Running, error) {
	r, err := m.Running()
	if err == nil && r.Console {
		err = errors.New("nothing is told from the recovery console: start the system")
	}
	if err != nil {
		return nil, err
	}
	return r, m.haveState(r)
}

// make is an attribute of the machine's make, which the kernel has from the firmware.
func (m *Machine) make(attribute string) string {
	text, err := m.read("sys/class/dmi/id/" + attribute)
	if err != nil {
		return "" // a machine without SMBIOS, or one that says nothing
	}
	return trialreport.Name(strings.TrimSpace(string(text)))
}

// errNobody says that there is no one to tell.
var errNobody = errors.New("no server takes reports: neither the image nor /etc/halogen/ota.conf names one (ReportTo=)")

// SendReport tells the distributor of the last update, by a worker. It does nothing where that
// was told already, and refuses where the owner has not allowed it.
//
// That it was told is noted when the server has it: cut before that, it is told once
// more, under another name.
func (m *Machine) SendReport(ctx context.Context, tell func(worker.Event)) (*Telling, error) {
	t, err := m.Telling()
	if err != nil || t.Report == nil || t.Told {
		return t, err
	}
	r, s, err := m.telling()
	switch {
	case err != nil:
		return t, err
	case s.ReportTo == "":
		return t, errNobody
	case t.AllowedBefore != "":
		return t, fmt.Errorf("the owner of this machine has allowed to tell %s, and not %s: `ota report --on` allows that", t.AllowedBefore, t.To)
	case !t.Allowed:
		return t, errors.New("the owner of this machine has not allowed it: `ota report` shows what is told, `ota report --on` allows it")
	}
	request, err := m.tellRequest(r, s, t)
	if err != nil {
		return t, err
	}
	done := false
	err = m.Worker.Run(ctx, request, worker.Files{}, func(e worker.Event) {
		done = done || e.Told
		if tell != nil && !e.Told {
			tell(e)
		}
	})
	if err == nil && !done {
		err = errors.New("worker ended without an answer and does not say why")
	}
	if err != nil {
		return t, fmt.Errorf("tell of version %s: %w", t.Report.Version, err)
	}
	t.Told = true
	text, err := json.Marshal(t.asTold())
	if err != nil {
		return t, err
	}
	return t, hw.KeepFile(m.state(r, toldFile), append(text, '\n'), 0o644)
}

// tellRequest is what a worker has to do.
func (m *Machine) tellRequest(r *Running, s settings.Settings, t *Telling) (none worker.Request, err error) {
	text, err := t.Report.Encode()
	if err != nil {
		return none, err
	}
	name, err := t.Report.FileName(m.Random)
	if err != nil {
		return none, err
	}
	ca, err := m.authorities(s)
	if err != nil {
		return none, err
	}
	return worker.Request{
		Do: worker.Tell, Address: s.ReportTo, UserAgent: s.UserAgent, RateLimit: s.RateLimit, Proxy: s.Proxy, CA: ca,
		Self: &offer.Self{Running: r.Contract}, Name: name, Text: text,
	}, nil
}

// AllowReports writes down whether the owner allows them, for the server that takes them now.
func (m *Machine) AllowReports(allow bool) error {
	r, err := m.teller()
	if err != nil {
		return err
	}
	if !allow {
		return hw.RemoveFile(m.state(r, allowedFile))
	}
	s, err := m.Settings()
	if err == nil && s.ReportTo == "" {
		err = errNobody
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(allowed{Format: allowedFormat, To: s.ReportTo})
	if err != nil {
		return err
	}
	return hw.KeepFile(m.state(r, allowedFile), append(text, '\n'), 0o600) // To may hold a password
}
