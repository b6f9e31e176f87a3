package settings

import (
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/uroot-cmds/ota/when"
)

func TestLoad(t *testing.T) {
	image := "# the distributor's\nServer=https://updates.example.org/os/\nChannel=beta\nRequireSignedManifest=yes\nFuture=1\n"
	owner := "\n  RateLimit = 500K \nUserAgent=\"my machine\"\nChannel='alpha'\n"
	got, err := Load([]byte(image), []byte(owner))
	want := Settings{Server: "https://updates.example.org/os", Channel: manifest.Alpha, RateLimit: 500 << 10, UserAgent: "my machine", SignedManifest: Always, When: when.Usual(), Restart: when.Ask, Grow: GrowAsk}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = Load(nil, nil)
	if err != nil || got.Channel != manifest.Stable || got.SignedManifest != Auto || got.UserAgent != DefaultUserAgent {
		t.Errorf("defaults %+v, %v", got, err)
	}
	for in, want := range map[string]string{"file:///srv/os/": "/srv/os", "/srv//os/": "/srv/os", "http://u:p@h:81/a": "http://u:p@h:81/a"} {
		if got, err := Load(nil, []byte("Server="+in)); err != nil || got.Server != want {
			t.Errorf("Server=%s is %q, %v", in, got.Server, err)
		}
	}
}

func TestLoadRefused(t *testing.T) {
	for text, want := range map[string]string{
		"Channel=nightly":                  "stable, beta or alpha",
		"Channel=stable\nChannel=beta":     "line 2: Channel is set twice",
		"Server=ftp://x/":                  "neither an http, https or file address",
		"Server=https:///x":                "neither an http, https or file address",
		"Server=file://host/x":             "neither an http, https or file address",
		"Server=updates":                   "neither an http, https or file address",
		"Server=":                          "neither an http, https or file address",
		"Server=http://a:b@h:x/":           "cannot be read",
		"Server=https://x/?a=b":            "query",
		"RateLimit=fast":                   "bytes a second",
		"RateLimit=":                       "bytes a second",
		"RateLimit=-1":                     "bytes a second",
		"RateLimit=1KM":                    "bytes a second",
		"RateLimit=2000G":                  "bytes a second",
		"RateLimit=12":                     "less than 1K",
		"UserAgent=":                       "want 1 to 200",
		"UserAgent=a\rX: b":                "control character",
		"RequireSignedManifest=maybe":      "yes, no or auto",
		"FetchMetered=1":                   "want yes or no",
		"BatteryAbove=half":                "not a percentage",
		"QuietHours=8 to 18":               "like 08:00-18:00",
		"Grow=yes":                         "want ask or auto",
		"Restart=always":                   "want ask, idle or night",
		"MaxLoad=-1":                       "not a load",
		"Server":                           "not KEY=VALUE",
		"=x":                               "not KEY=VALUE",
		strings.Repeat("#\n", MaxSize/2+1): "more than",
	} {
		if got, err := Load(nil, []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %+v, %v, want %q", text, got, err, want)
		}
		if _, err := Load([]byte(text), nil); err == nil || !strings.Contains(err.Error(), ImageFile) {
			t.Errorf("%.40q in the image's file: %v", text, err)
		}
	}
}

func TestWhen(t *testing.T) {
	s, err := Load([]byte("FetchMetered=yes\nBatteryAbove=50\nQuietHours=08:00-18:00\n"), []byte("QuietHours=\nMaxLoad=2\n"))
	if err != nil || !s.When.Metered || s.When.BatteryAbove != 50 || s.When.Quiet != nil || s.When.MaxLoad != 2 {
		t.Errorf("%+v, %v", s.When, err)
	}
}

func TestSetChannel(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "Channel=beta\n",
		"# mine\nFuture= x\nRateLimit=1M\n":  "# mine\nFuture= x\nRateLimit=1M\nChannel=beta\n",
		"Channel=stable\n\nServer=/srv\n# c": "Channel=beta\n\nServer=/srv\n# c\n",
	} {
		got, err := SetChannel([]byte(in), manifest.Beta)
		if err != nil || string(got) != want {
			t.Errorf("%q became %q, %v", in, got, err)
		}
	}
	if _, err := SetChannel(nil, "nightly"); err == nil {
		t.Error("an unknown channel was set")
	}
	if _, err := SetChannel([]byte("RateLimit=x\n"), manifest.Beta); err == nil {
		t.Error("a file that cannot be read was kept")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("Server=https://x\nChannel=beta\nRateLimit=5M\n"))
	f.Add([]byte("UserAgent=\"\nRateLimit=K\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := Load(nil, text); err != nil {
			return
		}
		out, err := SetChannel(text, manifest.Alpha)
		if len(out) > MaxSize || len(text) > MaxSize-20 {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, err := Load(nil, out); err != nil || s.Channel != manifest.Alpha {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

// Proxy= and CA=.
func TestProxyAndCA(t *testing.T) {
	s, err := Load([]byte("Proxy=http://me:secret@proxy.example.org:3128\nCA=/etc/ssl/ours.pem\n"), nil)
	if err != nil || s.Proxy != "http://me:secret@proxy.example.org:3128" || s.CA != "/etc/ssl/ours.pem" {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = Load([]byte("Proxy=http://proxy:3128\nCA=/etc/ssl/ours.pem\n"), []byte("Proxy=none\nCA=\n"))
	if err != nil || s.Proxy != "none" || s.CA != "" {
		t.Errorf("the owner's: %+v, %v", s, err)
	}
	for text, want := range map[string]string{"Proxy=proxy:3128": "like http://", "Proxy=ftp://x": "like http://", "Proxy=http://a:secret@%zz": "cannot be read", "CA=ours.pem": "absolute path"} {
		if _, err := Load(nil, []byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
