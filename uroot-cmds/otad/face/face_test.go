package face

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varlink/go/varlink"

	"halogenos.internal/boot/testkit"
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
	w, _, c := served(t, failing)
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
	if _, err := update.Rollback().Call(ctx, c, nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "slot b is empty") {
		t.Errorf("rollback: %v", err)
	}
	if err := update.Retry().Call(ctx, c, "5", nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "not on the list") {
		t.Errorf("retry: %v", err)
	}
	at := time.Now().Add(time.Hour).Unix()
	if err := errors.Join(update.Restart().Call(ctx, c, nil, nil), update.Restart().Call(ctx, c, &at, nil)); err != nil {
		t.Errorf("restart: %v", err)
	}
	if all := w.Restarts(); len(all) != 2 || !all[0].IsZero() || all[1].Unix() != at {
		t.Errorf("restarts %v", all)
	}
	far := time.Now().Add(365 * 24 * time.Hour).Unix()
	if err := update.Restart().Call(ctx, c, &far, nil); err == nil || len(w.Restarts()) != 2 {
		t.Errorf("a restart in a year: %v", err)
	}
	var idle *update.NothingUnderWay
	if _, _, err := update.Follow().Call(ctx, c, nil); !errors.As(err, &idle) {
		t.Errorf("follow: %v", err)
	}
	if err := update.Cancel().Call(ctx, c, nil); !errors.As(err, &idle) {
		t.Errorf("cancel: %v", err)
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

// Who is told something and does not read it is left. FAULTS 114
func TestDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := &bounded{Conn: conn, wait: 50 * time.Millisecond}
	if _, err := b.Write(make([]byte, 16<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("told for ever: %v", err)
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

// A flood of connections, a message without an end, and what is no message. FAULTS 114
func TestHostile(t *testing.T) {
	w := otadtest.New(t, failing)
	s := New(w.Service, w)
	for i := range maxOfUser {
		if !s.enter(1000) {
			t.Fatalf("connection %d of a user is refused", i)
		}
	}
	if s.enter(1000) {
		t.Error("a user has more connections than there is room for")
	}
	if !s.enter(1001) || !s.enter(0) {
		t.Error("another user, or root, is kept out")
	}
	for user := range uint32(maxAll) {
		_ = s.enter(2000 + user)
	}
	if s.enter(5000) || !s.enter(0) {
		t.Error("all connections are taken: a user comes in, or root does not")
	}
	s.leave(1000)
	if s.Idle() != 0 {
		t.Error("idle, with connections")
	}

	path := filepath.Join(t.TempDir(), "otad")
	listen(t, w, path)
	for name, text := range map[string]string{
		"no end":        strings.Repeat("x", 4*maxMessage),
		"no message":    "hello\x00",
		"not an object": "[1,2]\x00",
		"deep":          strings.Repeat("[", 10_000) + "\x00",
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Write([]byte(text)) // it may be cut
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("%s: answered with %d bytes", name, n)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: not cut off", name)
		}
		_ = conn.Close()
	}
	// And the next caller is answered, many at a time.
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c, err := varlink.NewConnection(t.Context(), "unix:"+path)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := update.Settings().Call(t.Context(), c, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
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
