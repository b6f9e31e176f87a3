package settings

import (
	"testing"

	"halogenos.internal/boot/testkit"
)

// FAULTS 112: the most likely errors in ota.conf
func TestTells(t *testing.T) {
	for _, c := range []struct {
		text string
		testkit.Error
	}{
		{"Server=updates.example.org\n", testkit.Error{What: "ota.conf: a server without http", Thing: "line 1: Server", Cure: "like https://"}},
		{"Server=https://u.example.org/?x=1\n", testkit.Error{What: "ota.conf: a server with a query", Thing: "line 1: Server", Cure: "leave out"}},
		{"Channel=nightly\n", testkit.Error{What: "ota.conf: a channel that is none", Thing: "line 1: Channel", Cure: "want stable, beta or alpha"}},
		{"# limits\nRateLimit=fast\n", testkit.Error{What: "ota.conf: a rate that is none", Thing: "line 2: RateLimit", Cure: "like 500K"}},
		{"RateLimit=10\n", testkit.Error{What: "ota.conf: a rate that is too low", Thing: "line 1: RateLimit", Cure: "allow more"}},
		{"Proxy=proxy:3128\n", testkit.Error{What: "ota.conf: a proxy without http", Thing: "line 1: Proxy", Cure: "like http://"}},
		{"CA=ca.pem\n", testkit.Error{What: "ota.conf: a relative name of certificates", Thing: "line 1: CA", Cure: "like /etc/ssl"}},
		{"RequireSignedManifest=maybe\n", testkit.Error{What: "ota.conf: a demand that is none", Thing: "line 1: RequireSignedManifest", Cure: "want yes, no or auto"}},
		{"Server https://u.example.org\n", testkit.Error{What: "ota.conf: a line without =", Thing: "line 1", Cure: "like Server="}},
		{"Server=https://a\nServer=https://b\n", testkit.Error{What: "ota.conf: a key twice", Thing: "line 2: Server", Cure: "take one of them out"}},
		{"UserAgent=\n", testkit.Error{What: "ota.conf: an empty user agent", Thing: "line 1: UserAgent", Cure: "want 1 to 200"}},
	} {
		_, err := Load(nil, []byte(c.text))
		if err == nil {
			t.Errorf("%s: no error", c.What)
			continue
		}
		testkit.Tells(t, c.Error, err.Error())
	}
}
