package qemutests

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

// hostAddress is where QEMU's user networking shows a guest the host's loopback.
const hostAddress = "10.0.2.2"

// WebServer is nginx, which serves a directory on the host's loopback until the test
// ends.
type WebServer struct {
	Root string // the directory; it may change while it is served
	URL  string // for a guest
	Host string // the same for this machine

	t    testing.TB
	logs string
}

// nginxConf serves files and nothing else, with everything nginx writes in one
// directory. Of each request it notes status, bytes of the body, range and path.
const nginxConf = `daemon off;
%[4]s
pid %[1]s/pid;
worker_processes 1;
error_log %[1]s/error.log;
events { worker_connections 64; }
http {
	log_format short '$status $body_bytes_sent "$http_range" $uri';
	access_log %[1]s/access.log short;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	sendfile on;
	server { listen 127.0.0.1:%[2]d; root "%[3]s"; autoindex off; }
}
`

// Serve starts nginx over a new, empty directory.
func Serve(t testing.TB) *WebServer {
	t.Helper()
	testkit.Need(t, "nginx")
	dir := t.TempDir()
	s := &WebServer{Root: filepath.Join(dir, "root"), t: t, logs: dir}
	if err := os.Mkdir(s.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	s.URL, s.Host = fmt.Sprintf("http://%s:%d", hostAddress, port), fmt.Sprintf("http://127.0.0.1:%d", port)
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the directories of a test are its user's alone
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, port, s.Root, user), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // a fast shutdown, which ends its worker too
		_ = cmd.Wait()                       // by a signal
	})
	s.waitUntilUp()
	return s
}

// freePort returns a port of the loopback that nobody listens at.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *WebServer) waitUntilUp() {
	s.t.Helper()
	var err error
	for range 100 {
		var r *http.Response
		if r, err = http.Get(s.Host + "/"); err == nil {
			_ = r.Body.Close() // an error page
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(s.logs, "error.log"))
	s.t.Fatalf("nginx does not answer: %v\n%s", err, text)
}

// A Request is one that was answered.
type Request struct {
	Status int
	Bytes  int64  // of the answer's body
	Range  string // what was asked for, - for all
	Path   string
}

// Requests returns what was answered so far, without those of waitUntilUp. nginx
// notes a request when its answer has been sent.
func (s *WebServer) Requests() (all []Request) {
	s.t.Helper()
	f, err := os.Open(filepath.Join(s.logs, "access.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.SplitN(lines.Text(), " ", 3)
		if len(words) != 3 {
			s.t.Fatalf("access log: %q", lines.Text())
		}
		asked, path, ok := strings.Cut(strings.TrimPrefix(words[2], `"`), `" `)
		status, err := strconv.Atoi(words[0])
		size, err2 := strconv.ParseInt(words[1], 10, 64)
		if !ok || err != nil || err2 != nil {
			s.t.Fatalf("access log: %q", lines.Text())
		}
		if path != "/" {
			all = append(all, Request{status, size, asked, path})
		}
	}
	if err := lines.Err(); err != nil {
		s.t.Fatal(err)
	}
	return all
}

// Sent is how many bytes the answers to these requests had.
func Sent(requests []Request) (n int64) {
	for _, r := range requests {
		n += r.Bytes
	}
	return n
}
