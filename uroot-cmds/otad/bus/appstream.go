package bus

import (
	"net/url"
	"os"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/uroot-cmds/otad/polkit"
)

// ListAppStream implements org.freedesktop.sysupdate1.Manager.
func (m *manager) ListAppStream(msg dbus.Message) ([]string, *dbus.Error) {
	return (&target{m.b}).GetAppStream(msg)
}

// GetAppStream implements org.freedesktop.sysupdate1.Target: a file of this machine's, which the
// last check has left. The notes in it are signed ones, which those who fetch a server's
// metadata themselves do not look at. KDE's Discover shows no system without such a file.
//
// A caller asks this before it asks for a new version, and wants to show what there is to say
// of that: so the server is asked here, where the caller may have it asked.
func (t *target) GetAppStream(msg dbus.Message) ([]string, *dbus.Error) {
	if done, denied := t.b.enter(msg, polkit.Check); denied == nil {
		checked := make(chan struct{})
		go func() {
			defer close(checked)
			defer done()
			_, _ = t.b.service.Check(t.b.conn.Context()) // CheckNew says what is wrong
		}()
		select {
		case <-checked:
		case <-time.After(beforeAnswer):
		}
	}
	name := t.b.service.Open().MetainfoFile()
	if _, err := os.Stat(name); err != nil {
		if t.b.service.Open().LeaveMetainfo(nil) != nil {
			return []string{}, nil
		}
	}
	return []string{(&url.URL{Scheme: "file", Path: name}).String()}, nil
}

// beforeAnswer bounds how long that waits for the server. GNOME Software gives an answer a
// second, and shows no update where it has come too late.
const beforeAnswer = 600 * time.Millisecond
