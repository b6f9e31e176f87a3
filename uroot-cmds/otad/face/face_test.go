package face

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varlink/go/varlink"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/otad/iosystemdsysupdate"
	update "halogenos.internal/uroot-cmds/otad/orghalogenosupdate"
	"halogenos.internal/uroot-cmds/otad/otadtest"
	"halogenos.internal/uroot-cmds/otad/polkit"
)

// listen answers for a world, and returns the socket's path.
func listen(t *testing.T, w *otadtest.World, path string) *Server {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	s := New(w.Service, w)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// served is a world with a socket, and a connection to it.
func served(t *testing.T, work string) (*otadtest.World, string, *varlink.Connection) {
	t.Helper()
	w := otadtest.New(t, work)
	path := filepath.Join(t.TempDir(), "otad")
	listen(t, w, path)
	return w, path, dial(t, path)
}

func dial(t *testing.T, path string) *varlink.Connection {
	t.Helper()
	c, err := varlink.NewConnection(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

const failing = "exit 1"

// slow is a worker that works until its input ends.
const slow = "read request; cat >/dev/null"

func TestMethods(t *testing.T) {
	_, _, c := served(t, failing)
	ctx := t.Context()
	state, err := update.State().Call(ctx, c, nil)
	var status struct{ Version, Server string }
	if err != nil || json.Unmarshal(state, &status) != nil || status.Version != "7" || strings.Contains(string(state), "secret") {
		t.Errorf("state %s, %v", state, err)
	}
	if set, err := update.Settings().Call(ctx, c, nil); err != nil || strings.Contains(string(set), "secret") || !strings.Contains(string(set), `"server":"https://updates.example.org/os"`) {
		t.Errorf("settings %s, %v", set, err)
	}
	beta, bad := "beta", "nightly"
	if channel, err := update.Channel().Call(ctx, c, nil, nil); err != nil || channel != "stable" {
		t.Errorf("channel %s, %v", channel, err)
	}
	if channel, err := update.Channel().Call(ctx, c, &beta, nil); err != nil || channel != "beta" {
		t.Errorf("channel %s, %v", channel, err)
	}
	var failed *update.Failed
	if _, err := update.Channel().Call(ctx, c, &bad, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "stable, beta or alpha") {
		t.Errorf("channel nightly: %v", err)
	}
	if _, err := update.Check().Call(ctx, c, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "worker ended") {
		t.Errorf("check: %v", err)
	}
	if _, _, err := update.Fetch().Call(ctx, c, nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "worker ended") {
		t.Errorf("fetch: %v", err)
	}
	if history, err := update.History().Call(ctx, c, nil, nil); err != nil || !strings.Contains(string(history), `"entries":[]`) {
		t.Errorf("history %s, %v", history, err)
	}
	if news, err := update.News().Call(ctx, c, nil); err != nil || !strings.Contains(string(news), `"read":false`) {
		t.Errorf("news %s, %v", news, err)
	}
	if conflicts, leftOut, err := update.Changes().Call(ctx, c, nil); err != nil || !slices.Equal(conflicts, []string{"/etc/hosts"}) || len(leftOut) > 0 {
		t.Errorf("changes %v, %v, %v", conflicts, leftOut, err)
	}
	if list, err := update.Extensions().Call(ctx, c, nil); err != nil || !strings.Contains(string(list), `"role":"runs","slot":"a","extensions":[]`) {
		t.Errorf("extensions %s, %v", list, err)
	}
	if _, _, err := update.EnableExtensions().Call(ctx, c, []string{"vpn"}, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "it has none") {
		t.Errorf("enable: %v", err)
	}
	if _, err := update.DisableExtensions().Call(ctx, c, []string{"vpn"}, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "no extension vpn is enabled") {
		t.Errorf("disable: %v", err)
	}
	for _, names := range [][]string{{}, {"../x"}, {"vpn", ""}, slices.Repeat([]string{"vpn"}, 65)} {
		var wrong *varlink.InvalidParameter
		if _, _, err := update.EnableExtensions().Call(ctx, c, names, nil); !errors.As(err, &wrong) {
			t.Errorf("enable %q: %v", names, err)
		}
		if _, err := update.DisableExtensions().Call(ctx, c, names, nil); !errors.As(err, &wrong) {
			t.Errorf("disable %q: %v", names, err)
		}
	}
	if _, err := update.Rollback().Call(ctx, c, nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "slot b is empty") {
		t.Errorf("rollback: %v", err)
	}
	if err := update.Retry().Call(ctx, c, "5", nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "not on the list") {
		t.Errorf("retry: %v", err)
	}
	var idle *update.NothingUnderWay
	if _, _, err := update.Follow().Call(ctx, c, nil); !errors.As(err, &idle) {
		t.Errorf("follow: %v", err)
	}
	if err := update.Cancel().Call(ctx, c, nil); !errors.As(err, &idle) {
		t.Errorf("cancel: %v", err)
	}
}

// A restart needs a release that waits, and what systemd-logind would ask polkit about if
// the caller called it. FAULTS 114
func TestRestart(t *testing.T) {
	w, _, c := served(t, failing)
	ctx, at := t.Context(), time.Now().Add(time.Hour).Unix()
	var failed *update.Failed
	if err := update.Restart().Call(ctx, c, nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "no release waits") {
		t.Errorf("nothing waits: %v", err)
	}
	far := time.Now().Add(365 * 24 * time.Hour).Unix()
	if err := update.Restart().Call(ctx, c, &far, nil); err == nil || len(w.Restarts()) > 0 {
		t.Errorf("a restart in a year: %v", err)
	}
	w.Asked()
	for name, o := range map[string]struct {
		when.Obstacles
		actions []polkit.Action
	}{
		"nothing stands against it":      {when.Obstacles{}, []polkit.Action{polkit.Reboot}},
		"a program does not want it":     {when.Obstacles{Inhibited: true}, []polkit.Action{polkit.RebootInhibited}},
		"others are logged in":           {when.Obstacles{Others: true}, []polkit.Action{polkit.RebootOthers}},
		"both":                           {when.Obstacles{Others: true, Inhibited: true}, []polkit.Action{polkit.RebootOthers, polkit.RebootInhibited}},
		"now, though another is planned": {when.Obstacles{Scheduled: true}, []polkit.Action{polkit.Reboot}},
	} {
		w.Stage(t, o.Obstacles)
		before := len(w.Restarts())
		if err := update.Restart().Call(ctx, c, nil, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := []string{string(polkit.Restart)}
		for _, a := range o.actions {
			want = append(want, string(a))
		}
		if asked := w.Asked(); !slices.Equal(asked, want) {
			t.Errorf("%s: asked for %q, want %q", name, asked, want)
		}
		if all := w.Restarts(); len(all) != before+1 || all[before].Careful == o.Inhibited || !all[before].At.IsZero() {
			t.Errorf("%s: %+v", name, all)
		}
		for _, a := range o.actions { // one no is enough
			w.Deny(a)
			if err := update.Restart().Call(ctx, c, nil, nil); err == nil || !strings.Contains(err.Error(), "NotAuthorized") {
				t.Errorf("%s, without %s: %v", name, a, err)
			}
			w.Allow(a)
		}
		if all := w.Restarts(); len(all) != before+1 {
			t.Errorf("%s: it restarts without rights", name)
		}
		w.Asked()
	}
	// Somebody logs in while the password for another question is typed.
	w.Stage(t, when.Obstacles{Inhibited: true})
	w.Meanwhile(polkit.RebootInhibited, when.Obstacles{Others: true})
	w.Deny(polkit.RebootOthers)
	before := len(w.Restarts())
	if err := update.Restart().Call(ctx, c, nil, nil); err == nil || len(w.Restarts()) != before {
		t.Errorf("over others who have logged in meanwhile: %v", err)
	}
	w.Allow(polkit.RebootOthers)
	w.Meanwhile(polkit.RebootInhibited, when.Obstacles{})
	w.Stage(t, when.Obstacles{Inhibited: true})
	if err := update.Restart().Call(ctx, c, nil, nil); err != nil || !w.Restarts()[before].Careful {
		t.Errorf("the obstacle is gone by the time it is allowed: %v", err)
	}
	before = len(w.Restarts())
	w.Stage(t, when.Obstacles{Scheduled: true})
	if err := update.Restart().Call(ctx, c, &at, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "scheduled already") {
		t.Errorf("in place of another: %v", err)
	}
	w.Stage(t, when.Obstacles{})
	if err := update.Restart().Call(ctx, c, &at, nil); err != nil {
		t.Error(err)
	}
	if all := w.Restarts(); len(all) != before+1 || all[before].At.Unix() != at {
		t.Errorf("%+v", all)
	}
}

func TestSysUpdate(t *testing.T) {
	_, _, c := served(t, failing)
	all, err := iosystemdsysupdate.ListTargets().Call(t.Context(), c)
	if err != nil || len(all) != 1 || all[0].Id.Class != "host" {
		t.Fatalf("%+v, %v", all, err)
	}
	if features, err := iosystemdsysupdate.ListFeatures().Call(t.Context(), c, all[0].Id); err != nil || len(features) > 0 {
		t.Errorf("%v, %v", features, err)
	}
	var none *iosystemdsysupdate.NoSuchTarget
	if _, err := iosystemdsysupdate.CheckNew().Call(t.Context(), c, iosystemdsysupdate.TargetIdentifier{Class: "sysext"}, nil); !errors.As(err, &none) {
		t.Errorf("another target: %v", err)
	}
	if _, err := iosystemdsysupdate.CheckNew().Call(t.Context(), c, all[0].Id, nil); err == nil || !strings.Contains(err.Error(), "org.halogenos.Update.Failed") {
		t.Errorf("check: %v", err)
	}
}

// A call may come without parameters.
func TestWithoutParameters(t *testing.T) {
	w := otadtest.New(t, failing)
	path := filepath.Join(t.TempDir(), "otad")
	listen(t, w, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(`{"method":"org.halogenos.Update.Channel"}` + "\x00")); err != nil {
		t.Fatal(err)
	}
	if text, err := bufio.NewReader(conn).ReadString(0); err != nil || !strings.Contains(text, `"channel":"stable"`) {
		t.Errorf("%q, %v", text, err)
	}
}

// Each method asks for its own action, before it does anything. FAULTS 114
func TestWithoutRights(t *testing.T) {
	w, _, c := served(t, failing)
	w.Deny(polkit.Actions()...)
	ctx, yes, reason := t.Context(), true, "no"
	beta := "beta"
	for name, m := range map[string]struct {
		action polkit.Action
		call   func() error
	}{
		"State":      {polkit.Status, func() error { _, err := update.State().Call(ctx, c, &yes); return err }},
		"Check":      {polkit.Check, func() error { _, err := update.Check().Call(ctx, c, &yes); return err }},
		"Fetch":      {polkit.Fetch, func() error { _, _, err := update.Fetch().Call(ctx, c, &yes, &yes); return err }},
		"Follow":     {polkit.Status, func() error { _, _, err := update.Follow().Call(ctx, c, &yes); return err }},
		"Cancel":     {polkit.Fetch, func() error { return update.Cancel().Call(ctx, c, &yes) }},
		"Extensions": {polkit.Status, func() error { _, err := update.Extensions().Call(ctx, c, &yes); return err }},
		"EnableExtensions": {polkit.Configure, func() error {
			_, _, err := update.EnableExtensions().Call(ctx, c, []string{"vpn"}, &yes)
			return err
		}},
		"DisableExtensions": {polkit.Configure, func() error {
			_, err := update.DisableExtensions().Call(ctx, c, []string{"vpn"}, &yes)
			return err
		}},
		"Rollback":   {polkit.Rollback, func() error { _, err := update.Rollback().Call(ctx, c, &reason, &yes); return err }},
		"Retry":      {polkit.Rollback, func() error { return update.Retry().Call(ctx, c, "7", nil, &yes) }},
		"Channel":    {polkit.Status, func() error { _, err := update.Channel().Call(ctx, c, nil, &yes); return err }},
		"SetChannel": {polkit.Configure, func() error { _, err := update.Channel().Call(ctx, c, &beta, &yes); return err }},
		"Settings":   {polkit.Status, func() error { _, err := update.Settings().Call(ctx, c, &yes); return err }},
		"History":    {polkit.Status, func() error { _, err := update.History().Call(ctx, c, nil, &yes); return err }},
		"News":       {polkit.Status, func() error { _, err := update.News().Call(ctx, c, &yes); return err }},
		"Changes":    {polkit.Status, func() error { _, _, err := update.Changes().Call(ctx, c, &yes); return err }},
		"Restart":    {polkit.Restart, func() error { return update.Restart().Call(ctx, c, nil, &yes) }},
		"CheckNew": {polkit.Check, func() error {
			_, err := iosystemdsysupdate.CheckNew().Call(ctx, c, iosystemdsysupdate.TargetIdentifier{Class: "host"}, &yes)
			return err
		}},
	} {
		err := m.call()
		if err == nil || !strings.Contains(err.Error(), "org.halogenos.Update.NotAuthorized") {
			t.Errorf("%s: %v", name, err)
		}
		if asked := w.Asked(); !slices.Equal(asked, []string{string(m.action) + ", asking"}) {
			t.Errorf("%s asked for %q, want %s", name, asked, m.action)
		}
	}
	if len(w.Restarts()) > 0 {
		t.Error("it restarts")
	}
	if text, err := os.ReadFile(filepath.Join(w.Dir, "etc/halogen/ota.conf")); err != nil || strings.Contains(string(text), "beta") {
		t.Errorf("ota.conf is %s, %v", text, err)
	}
}

// Two callers: one fetches, the other is told so, follows it and ends it. FAULTS 114
func TestTwoCallers(t *testing.T) {
	w, path, first := served(t, slow)
	second := dial(t, path)
	fetched := make(chan error, 1)
	go func() {
		_, _, err := update.Fetch().Call(t.Context(), first, nil, nil)
		fetched <- err
	}()
	for w.Job() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	var busy *update.Busy
	if _, _, err := update.Fetch().Call(t.Context(), second, nil, nil); !errors.As(err, &busy) {
		t.Errorf("a second fetch: %v", err)
	}
	third := dial(t, path)
	followed := make(chan error, 1)
	go func() {
		_, _, err := update.Follow().Call(t.Context(), third, nil)
		followed <- err
	}()
	if err := update.Cancel().Call(t.Context(), second, nil); err != nil {
		t.Errorf("cancel: %v", err)
	}
	var failed *update.Failed
	if err := <-fetched; !errors.As(err, &failed) || !strings.Contains(failed.Reason, "cancelled") {
		t.Errorf("the fetch: %v", err)
	}
	if err := <-followed; err == nil {
		t.Error("who follows is not told that it was cancelled")
	}
}

// A fetch goes on when its caller has gone.
func TestCallerLeaves(t *testing.T) {
	w, path, c := served(t, slow)
	if _, err := update.Fetch().Send(t.Context(), c, varlink.More, nil, nil); err != nil {
		t.Fatal(err)
	}
	for w.Job() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if w.Job() == nil {
		t.Fatal("the fetch has ended")
	}
	if err := update.Cancel().Call(t.Context(), dial(t, path), nil); err != nil {
		t.Error(err)
	}
}

// systemd's own client understands what otad says of itself, and calls it.
func TestVarlinkctl(t *testing.T) {
	tree := testkit.Tools13(t)
	w := otadtest.New(t, failing)
	path := filepath.Join(t.TempDir(), "otad")
	listen(t, w, path)
	// Not in a chroot: it connects by /proc/self/fd.
	varlinkctl := func(args ...string) string {
		libraries := tree.Host("/usr/lib/x86_64-linux-gnu")
		args = append([]string{"--library-path", libraries + ":" + libraries + "/systemd", tree.Host("/usr/bin/varlinkctl")}, args...)
		c := exec.Command(tree.Host("/usr/lib64/ld-linux-x86-64.so.2"), args...)
		c.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("varlinkctl %v: %v", args, err)
		}
		return string(out)
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"org.halogenos.Update\n", []string{"list-interfaces", path}},
		{"otad", []string{"info", path}},
		{"method Fetch(", []string{"introspect", path, "org.halogenos.Update"}},
		{"method CheckNew(", []string{"introspect", path, "io.systemd.SysUpdate"}},
		{`"class" : "host"`, []string{"call", "--json=pretty", path, "io.systemd.SysUpdate.ListTargets", "{}"}},
		{`"version" : "7"`, []string{"call", "--json=pretty", path, "org.halogenos.Update.State", "{}"}},
		{`"channel" : "stable"`, []string{"call", "--json=pretty", path, "org.halogenos.Update.Channel", "{}"}},
	} {
		if out := varlinkctl(c.args...); !strings.Contains(out, c.want) {
			t.Errorf("varlinkctl %v says %q nowhere:\n%s", c.args, c.want, out)
		}
	}
}

// The generated code is of the interfaces as they are.
func TestGenerated(t *testing.T) {
	for file, have := range map[string]string{
		"../orghalogenosupdate/org.halogenos.Update.varlink": (&update.VarlinkInterface{}).VarlinkGetDescription(),
		"../iosystemdsysupdate/io.systemd.SysUpdate.varlink": (&iosystemdsysupdate.VarlinkInterface{}).VarlinkGetDescription(),
	} {
		want, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(have) != strings.TrimSpace(string(want)) {
			t.Errorf("%s: go generate has not been run since it was changed (%v)", file, err)
		}
	}
}
