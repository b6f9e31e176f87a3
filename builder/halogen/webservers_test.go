package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

// A place is where a server is, and how it is reached.
type place struct {
	base      string // the root's address
	proxy, ca string // as the options have them
}

// A program is a web server of others. Its configuration is text/template's no more than
// a format, with the directory of its own, its port, the site and the user that it
// is to be where root starts it.
type program struct {
	name string
	conf string
	args []string // CONF, PORT, WORK and SITE stand for themselves
}

func nginx(more string) program {
	return program{"nginx", `daemon off; worker_processes 1; pid WORK/pid; error_log WORK/error.log; NGINXUSER
events { worker_connections 64; }
http {
	access_log off; gzip on; gzip_types *; ` + more + `
	client_body_temp_path WORK/t1; proxy_temp_path WORK/t2; fastcgi_temp_path WORK/t3; uwsgi_temp_path WORK/t4; scgi_temp_path WORK/t5;
	server { listen 127.0.0.1:PORT; root SITE; }
}
`, []string{"-p", "WORK", "-e", "WORK/error.log", "-c", "CONF"}}
}

func apache(more string) program {
	return program{"apache2", `ServerRoot WORK
ServerName localhost
Listen 127.0.0.1:PORT
PidFile WORK/pid
Mutex file:WORK
DefaultRuntimeDir WORK
ErrorLog WORK/error.log
APACHEUSER
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
LoadModule filter_module /usr/lib/apache2/modules/mod_filter.so
LoadModule deflate_module /usr/lib/apache2/modules/mod_deflate.so
TypesConfig /dev/null
StartServers 1
DocumentRoot SITE
` + more, []string{"-X", "-f", "CONF"}}
}

func lighttpd() program {
	return program{"lighttpd", `server.document-root = "SITE"
server.bind = "127.0.0.1"
server.port = PORT
server.errorlog = "WORK/error.log"
mimetype.assign = ( ".gz" => "application/gzip" )
`, []string{"-D", "-f", "CONF"}}
}

func caddy() program {
	return program{"caddy", `{
	admin off
	auto_https off
	storage file_system WORK
}
http://127.0.0.1:PORT {
	root * SITE
	encode gzip
	file_server
}
`, []string{"run", "--config", "CONF", "--adapter", "caddyfile"}}
}

func busybox() program {
	return program{"busybox", "", []string{"httpd", "-f", "-p", "127.0.0.1:PORT", "-h", "SITE"}}
}

func python() program {
	return program{"python3", "", []string{"-m", "http.server", "--bind", "127.0.0.1", "--directory", "SITE", "PORT"}}
}

// start starts a server on a port of its own and waits until it answers. It ends
// with the test.
func (p program) start(t *testing.T, f *fixture) place {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address, work := l.Addr().String(), t.TempDir()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	users := []string{"NGINXUSER", "", "APACHEUSER", ""}
	if os.Geteuid() == 0 { // the site may be read by everybody
		users = []string{"NGINXUSER", "user nobody nogroup;", "APACHEUSER", "User nobody\nGroup nogroup"}
	}
	fill := strings.NewReplacer(append(users, "CONF", filepath.Join(work, "conf"), "PORT", port, "WORK", work, "SITE", f.site)...)
	if err := os.WriteFile(filepath.Join(work, "conf"), []byte(fill.Replace(p.conf)), 0o644); err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, a := range p.args {
		args = append(args, fill.Replace(a))
	}
	var said bytes.Buffer
	cmd := exec.Command(testkit.Need(t, p.name), args...)
	cmd.Env = append(os.Environ(), "HOME="+work, "XDG_CONFIG_HOME="+work, "XDG_DATA_HOME="+work)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &said, &said, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it has left
	})
	for range 200 {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			return place{base: "http://" + address}
		}
		select {
		case err := <-ended:
			t.Fatalf("%s ended: %v\n%s", p.name, err, said.Bytes())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not answer", p.name)
	return place{}
}

// serveHTTP serves from this process.
func serveHTTP(t *testing.T, h http.Handler) place {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return place{base: s.URL}
}

// instead answers for one file otherwise than the site does.
func (f *fixture) instead(name string, h http.HandlerFunc) http.Handler {
	plain := f.files()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/"+name) {
			h(w, r)
			return
		}
		plain.ServeHTTP(w, r)
	})
}

// sends answers with a text.
func sends(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }
}

func (f *fixture) files() http.Handler { return http.FileServer(http.Dir(f.site)) }

// objectStore sends everybody to signed addresses on another host, and says of what
// is missing that it is forbidden.
func objectStore(t *testing.T, f *fixture) place {
	files := f.files()
	store := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("X-Amz-Signature") != r.URL.Path {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		files.ServeHTTP(w, r)
	}))
	other := strings.Replace(store.base, "127.0.0.1", "localhost", 1)
	return serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(filepath.Join(f.site, filepath.FromSlash(r.URL.Path))); err != nil {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>`)
			return
		}
		http.Redirect(w, r, other+r.URL.Path+"?X-Amz-Signature="+r.URL.Path, http.StatusTemporaryRedirect)
	}))
}

// cutting ends each connection after so many bytes.
func cutting(f *fixture, every int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		file, err := os.ReadFile(filepath.Join(f.site, filepath.FromSlash(r.URL.Path)))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		first, last := 0, len(file)-1
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err == nil {
			last = min(last, len(file)-1)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(file)))
			w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(file)))
		}
		_, _ = w.Write(file[first : first+min(last-first+1, every)])
	}
}

// failing answers every third request with 500.
func failing(f *fixture) http.HandlerFunc {
	var asked atomic.Int64
	plain := f.files()
	return func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1)%3 == 1 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		plain.ServeHTTP(w, r)
	}
}

const loginPage = "<!DOCTYPE html>\n<html><head><title>Welcome to our hotel</title></head><body>Log in</body></html>"

func portal(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, loginPage)
}

// redirectingPortal sends everybody to a page on another host.
func redirectingPortal(t *testing.T, _ *fixture) place {
	page := serveHTTP(t, http.HandlerFunc(portal))
	return serveHTTP(t, http.RedirectHandler(page.base+"/login?from=here", http.StatusFound))
}

// An authority signs certificates of servers.
type authority struct {
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	der := a.sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der.Certificate[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign makes a key and a certificate for it; the first is the authority's own.
func (a *authority) sign(t *testing.T, c *x509.Certificate, ends *time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), time.Now().Add(-48*time.Hour), time.Now().Add(48*time.Hour)
	if ends != nil {
		c.NotAfter = *ends
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		a.key = key
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve is serveHTTP with a certificate for these names, until ends.
func (a *authority) serve(t *testing.T, h http.Handler, ends *time.Time, names ...string) place {
	t.Helper()
	c := &x509.Certificate{}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{a.sign(t, c, ends)}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	s.StartTLS()
	t.Cleanup(s.Close)
	return place{base: s.URL, ca: a.file}
}

const hidden = "releases.example.org" // which only the proxy knows

// byProxy puts a proxy before a server that nobody else reaches. It wants a password
// unless that is empty, and connects to nothing where refuses is not 0.
func byProxy(t *testing.T, f *fixture, password string, refuses int) (place, *atomic.Int64) {
	t.Helper()
	var through atomic.Int64
	server := newAuthority(t).serve(t, f.files(), nil, hidden)
	plain := f.files()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+password))
	proxy := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case password != "" && r.Header.Get("Proxy-Authorization") != want:
			w.Header().Set("Proxy-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusProxyAuthRequired)
		case refuses != 0:
			w.WriteHeader(refuses)
		case r.Method == http.MethodConnect && r.Host == hidden+":443":
			through.Add(1)
			tunnel(w, strings.TrimPrefix(server.base, "https://"))
		case r.Method == http.MethodGet && r.URL.Host == hidden:
			through.Add(1)
			plain.ServeHTTP(w, r)
		default:
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	return place{base: "https://" + hidden, proxy: proxy.base, ca: server.ca}, &through
}

// tunnel connects a client with an address.
func tunnel(w http.ResponseWriter, address string) {
	to, err := net.Dial("tcp", address)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer to.Close()
	from, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer from.Close()
	_, _ = io.WriteString(from, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(from, to)
	_ = from.Close()
	<-done
}

// overIPv6 serves at [::1] alone.
func overIPv6(t *testing.T, f *fixture) place {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		testkit.Skip(t, "this machine has no IPv6: "+err.Error())
	}
	s := httptest.NewUnstartedServer(f.files())
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return place{base: s.URL}
}
