package worker

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/ota/server"
)

func TestNeeds(t *testing.T) {
	none := func(string) string { return "" }
	proxy := func(values ...string) func(string) string {
		return func(name string) string {
			if i := slices.Index(proxies, name); i >= 0 && i < len(values) {
				return values[i]
			}
			return ""
		}
	}
	for _, c := range []struct {
		address string
		has     []int
		getenv  func(string) string
		want    string
	}{
		{"https://u.example.org/os", nil, none, "{false  true [53 80 443]}"},
		{"http://u.example.org:8080/os", []int{Directory}, none, "{true  true [53 80 443 8080]}"},
		{"https://[::1]:8443", nil, proxy("proxy:3128", "https://me:secret@proxy:3129", "socks5://proxy", "socks5h://proxy:9"), "{false  true [9 53 80 443 1080 3128 3129 8443]}"},
		{"/media/stick", []int{Directory}, proxy("proxy:1"), "{true /media/stick false []}"},
		{"https://u.example.org", []int{Archive}, none, "{false  false []}"},
		{"", nil, none, "{false  false []}"},
	} {
		r := &Request{Address: c.address}
		for _, file := range c.has {
			r.Has[file] = true
		}
		n, err := needsOf(r, c.getenv)
		if got := fmt.Sprint(n); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.address, got, err, c.want)
		}
	}
	// Proxy= of the settings stands in place of the environment.
	for value, want := range map[string]string{
		"http://me:secret@proxy:3128": "{false  true [53 80 443 3128]}",
		"socks5://proxy":              "{false  true [53 80 443 1080]}",
		server.NoProxy:                "{false  true [53 80 443]}",
	} {
		n, err := needsOf(&Request{Address: "https://u.example.org", Proxy: value}, proxy("http://other:9"))
		if got := fmt.Sprint(n); err != nil || got != want {
			t.Errorf("Proxy=%s: %s, %v, want %s", value, got, err, want)
		}
	}
	for _, bad := range []string{"https://me:secret@host:70000", "http://me:secret@[::1"} {
		if _, err := needsOf(&Request{Address: bad}, none); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// probeEnv makes the test binary a worker that tries what it may not do: its value
// is what it needs, and what it may connect to.
const probeEnv = "HALOGEN_PROBE"

type probe struct {
	Web, Own                   bool
	HTTPS                      string
	Open, Directory, Forbidden string
	Port, OtherPort            int
}

func TestMain(m *testing.M) {
	text, ok := os.LookupEnv(probeEnv)
	if !ok {
		os.Exit(m.Run())
	}
	var p probe
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		panic(err)
	}
	n := needs{own: p.Own, directory: p.Directory, web: p.Web}
	if p.Web {
		n.ports = []uint16{dnsPort, uint16(p.Port)}
		u, err := url.Parse(p.HTTPS)
		if err != nil {
			panic(err)
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			panic(err)
		}
		n.ports = append(n.ports, uint16(port))
	}
	result := map[string]string{}
	if err := confineTo(n, func(text string) { result["note"] += text }); err != nil {
		result["confine"] = err.Error()
	}
	for name, err := range p.attempts() {
		if result[name] = "done"; err != nil {
			result[name] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// attempts are what somebody would try who has taken the worker over.
func (p probe) attempts() map[string]error {
	open := func(name string, flags int) error {
		f, err := os.OpenFile(name, flags, 0o600)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	call := func(number uintptr, args ...uintptr) error {
		var a [3]uintptr
		copy(a[:], args)
		if _, _, errno := unix.RawSyscall(number, a[0], a[1], a[2]); errno != 0 {
			return errno
		}
		return nil
	}
	socket := func(domain, kind, protocol int) error {
		fd, err := unix.Socket(domain, kind, protocol)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
	dial := func(port int) error {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			err = c.Close()
		}
		return err
	}
	get := func() error {
		answer, err := http.Get(p.HTTPS)
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	}
	redirect := func() error {
		tr, err := server.New(fmt.Sprintf("http://127.0.0.1:%d", p.Port), server.Options{Attempts: 1})
		if err == nil {
			_, err = tr.Get(context.Background(), "file", 10)
		}
		return err
	}
	lookup := func() error {
		_, err := (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), "localhost")
		return err
	}
	path, _ := unix.BytePtrFromString("/bin/true")
	return map[string]error{
		"write own file": open("own", os.O_RDWR|os.O_CREATE), "rename own file": os.Rename("own", "own2"),
		"read directory": open(filepath.Join(p.Open, "file"), os.O_RDONLY), "threads": threads(),
		"https": get(), "lookup": lookup(), "connect": dial(p.Port), "connect elsewhere": dial(p.OtherPort), "redirect": redirect(),
		"read other file": open(p.Forbidden, os.O_RDONLY), "write other file": open(p.Forbidden, os.O_WRONLY), "list /": open("/", os.O_RDONLY),
		"create other file": open(p.Forbidden+".new", os.O_RDWR|os.O_CREATE), "memory": open("/proc/self/mem", os.O_RDWR),
		"remove other file": os.Remove(p.Forbidden), "truncate": os.Truncate(p.Forbidden, 0),
		"execve": unix.Exec("/bin/true", []string{"true"}, nil), "start": exec.Command("/bin/true").Run(),
		"execveat": call(unix.SYS_EXECVEAT, ^uintptr(99), uintptr(unsafe.Pointer(path))), "fork": fork(),
		"ptrace": call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, ^uintptr(0)), "process_vm_readv": call(unix.SYS_PROCESS_VM_READV, 1), "kill": unix.Kill(os.Getppid(), 0),
		"mount": unix.Mount("none", "/mnt", "tmpfs", 0, ""), "chroot": unix.Chroot("/"), "unshare": unix.Unshare(unix.CLONE_NEWUSER), "setns": unix.Setns(0, 0),
		"unix socket": socket(unix.AF_UNIX, unix.SOCK_STREAM, 0), "netlink": socket(unix.AF_NETLINK, unix.SOCK_RAW, 0), "packet": socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
		"vsock": socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), "mptcp": socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), "icmp": socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
		"listen": call(unix.SYS_LISTEN, 0, 1), "io_uring": call(unix.SYS_IO_URING_SETUP, 1), "bpf": call(unix.SYS_BPF), "keyctl": call(unix.SYS_KEYCTL),
		"userfaultfd": call(unix.SYS_USERFAULTFD), "perf": call(unix.SYS_PERF_EVENT_OPEN), "ioctl": call(unix.SYS_IOCTL, 0, unix.TIOCSTI),
		"memfd": call(unix.SYS_MEMFD_CREATE, uintptr(unsafe.Pointer(path))), "dumpable": unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0),
		"chmod": os.Chmod("own2", 0o777), "reboot": call(unix.SYS_REBOOT), "clone3": call(unix.SYS_CLONE3), "init_module": call(unix.SYS_FINIT_MODULE),
	}
}

// fork makes a process, which ends at once.
func fork() error {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return nil
}

// threads needs new threads, and the signals by which Go's runtime stops them.
func threads() error {
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			runtime.LockOSThread()
			runtime.GC()
		})
	}
	all.Wait()
	return nil
}

func needKernel(t *testing.T) {
	t.Helper()
	if version, err := landlocksys.LandlockGetABIVersion(); err != nil || version < landlockTCP {
		testkit.Skip(t, fmt.Sprintf("the kernel has Landlock %d, want %d: %v", version, landlockTCP, err))
	}
}

// listening returns a port of this machine that takes connections.
func listening(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// Anyone who takes the worker over can use its directory and the server's port, and
// nothing else, not even as root. FAULTS 101
func TestConfined(t *testing.T) {
	needKernel(t)
	other := listening(t)
	plain := httptest.NewServer(http.RedirectHandler(fmt.Sprintf("http://127.0.0.1:%d/", other), http.StatusFound))
	defer plain.Close()
	port := plain.Listener.Addr().(*net.TCPAddr).Port
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	web, own := []string{"connect", "https", "lookup", "threads"}, []string{"write own file", "rename own file"}
	for name, c := range map[string]struct {
		web, directory, own bool
		may                 []string
	}{
		"look":      {true, false, false, web},
		"fetch":     {true, false, true, slices.Concat(web, own)},
		"directory": {false, true, true, append([]string{"read directory", "threads"}, own...)},
		"archive":   {false, false, true, append([]string{"threads"}, own...)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := probe{Web: c.web, Own: c.own, HTTPS: secure.URL, Open: filepath.Join(dir, "open"), Forbidden: filepath.Join(dir, "forbidden"), Port: port, OtherPort: other}
			own := filepath.Join(dir, "own")
			for _, directory := range []string{p.Open, own} {
				if err := os.Mkdir(directory, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for _, file := range []string{p.Forbidden, filepath.Join(p.Open, "file"), filepath.Join(own, "own")} {
				if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.directory {
				p.Directory = p.Open
			}
			// It is read before the worker is confined.
			authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
			if err := os.WriteFile(filepath.Join(dir, "authority"), authority, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("SSL_CERT_FILE", filepath.Join(dir, "authority"))
			result := p.run(t, own)
			for what, said := range result {
				switch done := said == "done"; {
				case slices.Contains(c.may, what) != done:
					t.Errorf("%s: %s", what, said)
				case !done && !refused(what, said):
					t.Errorf("%s failed for another reason: %s", what, said)
				}
			}
			// A redirect says what is wrong, and the way out. FAULTS 112
			if said := result["redirect"]; c.web && !strings.Contains(said, fmt.Sprintf("leads to port %d", other)) || c.web && !strings.Contains(said, "Server= of ota.conf") {
				t.Errorf("redirect: %s", said)
			}
			if text, err := os.ReadFile(p.Forbidden); err != nil || string(text) != "content" {
				t.Errorf("the other file has %q, %v", text, err)
			}
		})
	}
}

// refused reports whether it is Landlock or seccomp that says no.
func refused(what, said string) bool {
	reasons := []error{syscall.EPERM, syscall.EACCES}
	if what == "clone3" {
		reasons = []error{syscall.ENOSYS}
	}
	return slices.ContainsFunc(reasons, func(err error) bool { return strings.Contains(said, err.Error()) })
}

func (p probe) run(t *testing.T, own string) map[string]string {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	// Not confined, it replaces itself, or waits for a tracer.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.WaitDelay = time.Second
	c.Env, c.Dir = append(os.Environ(), probeEnv+"="+string(text)), own
	out, err := c.Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Logf("%s", failed.Stderr)
		}
		t.Fatal(err)
	}
	result := map[string]string{}
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(result) < 40 {
		t.Fatalf("only %d attempts: %v", len(result), result)
	}
	return result
}
