package healthignore

import (
	"strings"
	"testing"
)

func TestIgnore(t *testing.T) {
	i, err := Parse("x", []byte("# what may fail\n\n  NetworkManager-wait-online.service   # no network\nfoo@*.service\nba?.service\n"+`dev-\x2d.swap`+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"NetworkManager-wait-online.service": true, "foo@1.service": true, "bar.service": true, `dev-\x2d.swap`: true,
		"NetworkManager-wait-onlineXservice": false, "foo.service": false, "baar.service": false, "xbar.service": false, "dev--.swap": false,
	} {
		if i.Has(name) != want {
			t.Errorf("%s: want %v", name, want)
		}
	}
	for _, bad := range []string{"a.service b.service\n", "a/b\n", "[a].service\n", strings.Repeat("a", 256) + "\n", "\x00\n"} {
		i, err := Parse("etc/halogen/health-ignore", []byte("good.service\n"+bad+"*\n"))
		if err == nil || !strings.Contains(err.Error(), "/etc/halogen/health-ignore, line 2: ") {
			t.Errorf("%q: %v", bad, err)
		}
		if len(i) != 2 || !i.Has("good.service") {
			t.Errorf("%q: %v", bad, i)
		}
	}
	if i, err := Parse("x", make([]byte, MaxSize+1)); err == nil || i != nil {
		t.Error("a file of any size is read")
	}
}
