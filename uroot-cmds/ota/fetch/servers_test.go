package fetch

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

const nginxConf = `daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log %[1]s/error.log;
%[4]s
events { worker_connections 64; }
http {
	access_log off;
	gzip on;
	gzip_types *;
	client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
	server { listen 127.0.0.1:%[2]d; root %[3]s; }
}
`

// port returns one that was free a moment ago.
func port(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start starts a server and waits until it answers.
func start(t *testing.T, port int, cmd *exec.Cmd) string {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // at which nginx ends its worker too
		_ = cmd.Wait()                       // by a signal
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for range 1200 {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			return "http://" + address
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not answer", cmd.Path)
	return ""
}

// The web servers of others: nginx sends ranges, Python's sends none.
func TestServersOfOthers(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, w.site.Files); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, address string, ranges bool) {
		m := newMachine(t, w.old)
		f, _, err := m.look(context.Background(), address)
		if err != nil || f.Ranges != ranges {
			t.Fatalf("ranges %v, want %v: %v", f != nil && f.Ranges, ranges, err)
		}
		r, err := m.fetch(context.Background(), address)
		if err != nil {
			t.Fatal(err)
		}
		m.has(w.new)
		if less := r.Fetched < int64(len(w.new.Archive))/2; less != ranges {
			t.Errorf("fetched %d bytes of %d", r.Fetched, len(w.new.Archive))
		}
	}
	t.Run("nginx", func(t *testing.T) {
		nginx, work, n, user := testkit.Need(t, "nginx"), t.TempDir(), port(t), ""
		if os.Getuid() == 0 {
			user = "user root;" // of the worker processes, which must reach the folder
		}
		conf := filepath.Join(work, "nginx.conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, work, n, dir, user), 0o600); err != nil {
			t.Fatal(err)
		}
		check(t, start(t, n, exec.Command(nginx, "-p", work, "-e", filepath.Join(work, "error.log"), "-c", conf)), true)
	})
	t.Run("python", func(t *testing.T) {
		python := testkit.Need(t, "python3")
		n := port(t)
		check(t, start(t, n, exec.Command(python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, strconv.Itoa(n))), false)
	})
}
