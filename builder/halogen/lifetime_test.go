package main

import (
	"strings"
	"testing"
	"time"

	"halogenos.internal/uroot-cmds/ota/server"
)

func TestLifetimes(t *testing.T) {
	for text, want := range map[string]time.Duration{"30d": 720 * time.Hour, "4w": 672 * time.Hour, "720h": 720 * time.Hour, "0": 0, "1h30m": 90 * time.Minute} {
		var l lifetime
		if err := l.Set(text); err != nil || time.Duration(l) != want {
			t.Errorf("%s: %s, %v", text, time.Duration(l), err)
		}
	}
	for _, text := range []string{"", "d", "30", "1y", "200000000d", "x"} {
		var l lifetime
		if err := l.Set(text); err == nil || !strings.Contains(err.Error(), "such as 30d") {
			t.Errorf("%q: %s, %v", text, time.Duration(l), err)
		}
	}
}

// Addresses in capitals are addresses, and those of other kinds are named.
func TestAddresses(t *testing.T) {
	if all, err := servers("HTTPS://releases.example.org/x86_64/os", server.Options{}); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	for place, say := range map[string]string{"file:///srv/www": "without file://", "s3://bucket/os": "over http or https", "ftp://x/y": "over http or https"} {
		if _, err := servers(place, server.Options{}); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", place, err, say)
		}
	}
}
