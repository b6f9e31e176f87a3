package worker

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
)

func TestDoRefused(t *testing.T) {
	self := &offer.Self{Running: &contract.Contract{ImageID: "os", Arch: "x86_64"}}
	for want, r := range map[string]Request{
		"says nothing of the machine": {Do: Look},
		"no server is set":            {Do: Look, Self: self},
		"is not known":                {Do: "format", Self: self, Address: t.TempDir()},
		"or no slot":                  {Do: Fetch, Self: self, Address: t.TempDir(), Found: &fetch.Found{}},
		"has no manifest.env":         {Do: Look, Self: self, Address: t.TempDir()},
	} {
		err := Do(context.Background(), r, Files{}, t.TempDir(), func(Event) {})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
}

// A worker learns of the environment what it needs, and no secrets.
func TestEnvironment(t *testing.T) {
	t.Setenv("https_proxy", "http://proxy:1")
	t.Setenv("SECRET_TOKEN", "x")
	got := strings.Join(environment(), "\n")
	if !strings.Contains(got, "https_proxy=http://proxy:1") || strings.Contains(got, "SECRET") || !strings.Contains(got, "PATH=") {
		t.Errorf("environment %s", got)
	}
}

// Whatever a worker says, the listener ends with an error or an event.
func FuzzListen(f *testing.F) {
	for _, e := range []Event{{Note: "x"}, {Error: "no"}, {Progress: &fetch.Progress{Phase: fetch.Copying}}, {Result: &fetch.Result{Fetched: 1}}} {
		text, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("{}\n{\"found\":{\"head\":\"AAAA\"}}\n"))
	f.Add([]byte("{\"note\":1}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		lines := 0
		_, err := listen(strings.NewReader(string(text)), func(Event) { lines++ })
		if err == nil && lines > strings.Count(string(text), "\n")+1 {
			t.Fatalf("%d events in %q", lines, text)
		}
	})
}
