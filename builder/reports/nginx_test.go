package reports

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/trialreport"
)

// nginx, with the configuration that the manual gives but for where it listens, takes
// reports and nothing else, and gives none out.
func TestNginx(t *testing.T) {
	testkit.Need(t, "nginx")
	work := t.TempDir()
	address := startNginx(t, work)
	r := trialreport.Report{Format: trialreport.Format, ImageID: "desktop", Arch: "x86_64", Version: 7, Channel: "stable", Result: trialreport.Kept, Day: "2026-01-02"}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	name, err := r.FileName(strings.NewReader("a name of chance"))
	if err != nil {
		t.Fatal(err)
	}
	for _, ask := range []struct {
		how, name, body string
		want            int
	}{
		{http.MethodPut, "/os/" + name, string(text), http.StatusCreated},
		{http.MethodGet, "/os/" + name, "", http.StatusForbidden},
		{http.MethodGet, "/os/", "", http.StatusNotFound},
		{http.MethodDelete, "/os/" + name, "", http.StatusForbidden},
		{http.MethodPut, "/os/index.html", "<html>", http.StatusNotFound},
		{http.MethodPut, "/os/desktop-7-" + strings.Repeat("a", 24) + ".json", strings.Repeat("a", 5000), http.StatusRequestEntityTooLarge},
	} {
		request, err := http.NewRequestWithContext(t.Context(), ask.how, address+ask.name, strings.NewReader(ask.body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := answer.Body.Close(); err != nil || answer.StatusCode != ask.want {
			t.Errorf("%s %s: %d, want %d", ask.how, ask.name, answer.StatusCode, ask.want)
		}
	}
	c, err := Read(t.Context(), filepath.Join(work, "site"))
	if err != nil || c.Of("x86_64", "desktop", 7, "stable") != (Counts{Kept: 1}) || c.Malformed != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// startNginx returns the server's address.
func startNginx(t *testing.T, work string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	server := strings.NewReplacer("listen 443 ssl", "listen "+address, "/srv/reports", work+"/site", "rate=2r/m", "rate=600r/m").Replace(Nginx)
	for _, line := range []string{"ssl_certificate /etc/ssl/reports.pem;", "ssl_certificate_key /etc/ssl/private/reports.key;"} {
		server = strings.Replace(server, line, "", 1)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	conf := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log %[1]s/error.log;
%[2]sevents {}
http {
access_log off; client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
%[3]s}
`, work, user, server)
	if err := os.Mkdir(filepath.Join(work, "site"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(work, "conf"), conf)
	cmd := exec.Command("nginx", "-p", work, "-e", filepath.Join(work, "error.log"), "-c", filepath.Join(work, "conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Signal(syscall.SIGTERM), cmd.Wait() })
	for range 300 {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close()
			return "http://" + address
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(work, "error.log"))
	t.Fatalf("nginx does not answer\n%s", text)
	return ""
}
