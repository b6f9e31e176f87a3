package osfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/builder/config"
)

// The health check runs what it finds, says what failed, and leaves that for the boot
// journal.
func TestHealth(t *testing.T) {
	const good = "echo 'old.service failed before, too'"
	for _, c := range []struct {
		name    string
		checks  map[string]string // content by name
		ota     string
		updated string
		reason  string // "" is healthy
		say     string
	}{
		{"none", nil, good, "", "", "old.service failed before, too\n"},
		{"all good", map[string]string{"usr/lib/halogen/health.d/10-a": "echo a", "etc/halogen/health.d/20-b": "echo b"}, good, "", "", "a\nb\n"},
		{"one bad", map[string]string{"usr/lib/halogen/health.d/10-a": "exit 3", "etc/halogen/health.d/20-b": "echo b"}, good, "", "10-a failed: exit status 3\n", "exit status 3"},
		{"a unit failed", nil, "echo 'ota health: failed: new.service' >&2; exit 1", "", "failed: new.service\n", "failed: new.service"},
		{"a warning", nil, "echo 'warning: line 3' >&2; echo good", "", "", "good\nwarning: line 3\n"},
		{"no trial", map[string]string{"usr/lib/halogen/health.d/10-a": "echo a"}, "exit 1", "", "", "a\n"},
		{"no ota", nil, "exit 127", "", "ota health: exit status 127\n", "ota health"},
		{"what may fail has failed", nil, good, "/usr/lib/halogen/updated.d/10-may\nldconfig\n", "", "and may: /usr/lib/halogen/updated.d/10-may\n"},
		{"a line that is more than a name", nil, good, "not-one\n", "at the first start of this image failed: not-one\n", "not-one"},
		{"what waits for an update failed", nil, good, "/usr/lib/halogen/updated.d/10-a\nldconfig\n", "at the first start of this image failed: /usr/lib/halogen/updated.d/10-a ldconfig\n", "10-a"},
		{"what waits for an update worked", nil, good, "none", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			cmd := script(t, "health.sh", root)
			program(t, root, "bin/ota", `[ "$*" = health ] || exit 9; `+c.ota)
			if c.name != "no trial" {
				program(t, root, "run/halogen/boot.json", `  "trial": true,`)
			}
			for name, text := range c.checks {
				program(t, root, name, text)
			}
			for name, text := range map[string]string{"usr/lib/halogen/health-ignore.default": "# x\n\n*-may\n", "etc/halogen/health-ignore": "not-one two\n[n]ot-one\n  ldconf?g # mine"} {
				if strings.HasPrefix(c.name, "what may") || strings.HasPrefix(c.name, "a line") {
					program(t, root, name, text)
				}
			}
			// Not a program, so nothing to run.
			program(t, root, "etc/halogen/health.d/README", "exit 1")
			if err := os.Chmod(filepath.Join(root, "etc/halogen/health.d/README"), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.updated != "" {
				if err := os.WriteFile(filepath.Join(root, "run/halogen/updated"), []byte(strings.TrimPrefix(c.updated, "none")), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			program(t, root, "run/halogen/unhealthy", "of an earlier check")
			said, err := cmd.CombinedOutput()
			if (err == nil) != (c.reason == "") || !strings.Contains(string(said), c.say) {
				t.Errorf("%v: %s", err, said)
			}
			if reason := content(t, root, "run/halogen/unhealthy"); !strings.HasSuffix(reason, c.reason) || c.reason == "" && reason != "" {
				t.Errorf("for the journal: %q, want %q", reason, c.reason)
			}
		})
	}
}

// A trial that is not healthy is given up with the reason that the check has left.
func TestUnhealthy(t *testing.T) {
	for _, c := range []struct{ script, reason, want string }{
		{"unhealthy.sh", "failed: new.service\n", "ota bless --failed failed: new.service\nsystemctl --no-block reboot\n"},
		{"unhealthy.sh", "", "ota bless --failed failed: a.service b.mount\nsystemctl --no-block reboot\n"},
		{"examples/ota-boot", "failed: sshd\n", "updated \nota bless --failed failed: sshd\nreboot \n"},
		{"examples/ota-boot", "", "updated \nota bless --failed the health check has failed\nreboot \n"},
	} {
		root := t.TempDir()
		cmd := script(t, c.script, root)
		log := ` $*" >>` + filepath.Join(root, "did")
		program(t, root, "bin/ota", `echo "ota`+log)
		program(t, root, "bin/reboot", `echo "reboot`+log)
		program(t, root, "bin/systemctl", `[ "$1" != list-units ] || { printf 'a.service loaded failed failed A\nb.mount loaded failed failed B\n'; exit; }; echo "systemctl`+log)
		program(t, root, "usr/lib/halogen/updated", `echo "updated`+log)
		left := ""
		if c.reason != "" {
			left = "printf '" + strings.TrimSpace(c.reason) + "\n' >" + filepath.Join(root, "run/halogen/unhealthy") + "; "
		}
		program(t, root, "usr/lib/halogen/health", left+"exit 1")
		program(t, root, "run/halogen/boot.json", `"trial": true`)
		if c.script == "unhealthy.sh" && c.reason != "" {
			if err := os.WriteFile(filepath.Join(root, "run/halogen/unhealthy"), []byte(c.reason), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		said, err := cmd.CombinedOutput()
		if did := content(t, root, "did"); err != nil || did != c.want {
			t.Errorf("%s: %v, %s\ndid %q\nwant %q", c.script, err, said, did, c.want)
		}
	}
}

// Beside the 3.5 minutes that a start may take to settle, the image's own checks have ten,
// and boot-complete.target waits for them.
func TestTimeouts(t *testing.T) {
	limit := func(name, before, after string) time.Duration {
		t.Helper()
		text, err := files.ReadFile("files/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), before)
		number, _, _ := strings.Cut(rest, after)
		d, err := time.ParseDuration(strings.TrimSuffix(strings.TrimSuffix(number, "in"), "m") + map[string]string{" ": "s", "\n": "m"}[after])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	check := limit("systemd/ota-health.service", "\nTimeoutStartSec=", "\n")
	if least := 10*time.Minute + 210*time.Second; check < least {
		t.Errorf("ota-health.service has %v, want %v", check, least)
	}
	if target := limit("systemd/boot-complete.conf", "\nJobTimeoutSec=", "\n"); target < check+5*time.Minute {
		t.Errorf("boot-complete.target has %v, and the check %v", target, check)
	}
	if other := limit("examples/ota-boot", "if timeout ", " "); other != check {
		t.Errorf("ota-boot has %v, and ota-health.service %v", other, check)
	}
}

// A list of services that may fail is right, or the build says what is wrong with it.
func TestAddIgnore(t *testing.T) {
	for text, good := range map[string]bool{"# none\nNetworkManager-wait-online.service\n": true, "a.service b.service\n": false} {
		tree, _ := tree(t, systemd)
		if err := tree.AddFile("usr/lib/halogen/health-ignore", []byte(text), 0o644, date); err != nil {
			t.Fatal(err)
		}
		if _, err := Add(tree, new(config.Config), date); (err == nil) != good || err != nil && !strings.Contains(err.Error(), "/usr/lib/halogen/health-ignore, line 1: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
