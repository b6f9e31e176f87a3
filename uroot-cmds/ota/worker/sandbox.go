package worker

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"halogenos.internal/uroot-cmds/ota/server"
)

// needs is what a request takes beside the files that the worker was given.
type needs struct {
	own       bool     // the directory of its own, where it is
	directory string   // to read from, a server's; empty for none
	web       bool     // connections to a server
	ports     []uint16 // of TCP, to connect to
}

// proxies are the names of the variables that net/http takes proxies from.
var proxies = []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"}

const dnsPort = 53

// needsOf says what a request takes.
func needsOf(r *Request, getenv func(string) string) (needs, error) {
	n := needs{own: r.Has[Directory]}
	switch {
	case r.Has[Archive] || r.Address == "":
		return n, nil
	case filepath.IsAbs(r.Address):
		n.directory = r.Address
		return n, nil
	}
	// Where redirects lead is not known yet: only to the ports that servers have.
	n.web, n.ports = true, []uint16{dnsPort, 80, 443}
	addresses, environment := []string{r.Address}, proxies
	if r.Proxy != "" {
		environment = nil // it stands in place of them
	}
	if r.Proxy != "" && r.Proxy != server.NoProxy {
		addresses = append(addresses, r.Proxy)
	}
	for _, name := range environment {
		if value := getenv(name); value != "" && !strings.Contains(value, "://") {
			addresses = append(addresses, "http://"+value)
		} else if value != "" {
			addresses = append(addresses, value)
		}
	}
	for _, address := range addresses {
		u, err := url.Parse(address)
		if err != nil {
			return needs{}, errors.New("the address of the server or of a proxy is not a URL") // it may hold a password
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		switch {
		case err == nil:
			n.ports = append(n.ports, uint16(port))
		case u.Port() != "":
			return needs{}, fmt.Errorf("port %s of %s is not a number up to 65535", u.Port(), u.Hostname())
		case strings.HasPrefix(u.Scheme, "socks5"):
			n.ports = append(n.ports, 1080)
		}
	}
	slices.Sort(n.ports)
	n.ports = slices.Compact(n.ports)
	return n, nil
}

// confineTo leaves the process what a request needs and nothing else, before
// the first byte of a server's is read: anyone who takes the worker over reaches
// the open files, its directory and the ports of servers. It tells what the kernel
// lacks for it.
func confineTo(n needs, note func(string)) error {
	if withCgo && os.Getpid() == 1 {
		note("this program was built with cgo, which `make` does not: the fetch is limited by its user's rights alone")
		return nil
	}
	if n.web {
		// Read now, and kept by crypto/x509: no file is needed for it later.
		_, _ = x509.SystemCertPool() // without one a connection says so
	}
	if err := restrictFiles(n, note); err != nil {
		return fmt.Errorf("confine the worker with Landlock: %w", err)
	}
	if err := restrictCalls(n, note); err != nil {
		return fmt.Errorf("confine the worker with seccomp: %w", err)
	}
	return nil
}

// Versions of Landlock (kernel documentation, userspace-api/landlock.html).
const (
	landlockTruncate = 3 // the first that restricts all writing to files
	landlockTCP      = 4 // the first that restricts connections
)

// restrictFiles has Landlock refuse other files and ports. The scopes of version 6
// are left out: kernels that lack a later fix then refuse the signals that Go's
// runtime sends its own threads. Nothing is missed: a worker with a PID namespace
// sees no other process, and makes no sockets but those of IP.
func restrictFiles(n needs, note func(string)) error {
	version, err := landlocksys.LandlockGetABIVersion()
	switch {
	case err != nil || version < 1:
		note("the kernel has no Landlock: which files and ports the fetch may use is limited by its user's rights alone (CONFIG_SECURITY_LANDLOCK, lsm=landlock,...)")
		return nil
	case version < landlockTruncate || version < landlockTCP && n.web:
		note(fmt.Sprintf("the kernel's Landlock is of version %d and restricts less than version %d would", version, landlockTCP))
	}
	var rules []landlock.Rule
	if n.own {
		rules = append(rules, landlock.RWDirs("."))
	}
	if n.directory != "" {
		rules = append(rules, landlock.RODirs(n.directory))
	}
	if n.web {
		rules = append(rules, names()...)
	}
	best := landlock.V11.BestEffort()
	if err := best.RestrictPaths(rules...); err != nil {
		return err
	}
	// Asked for addresses of IPv6, Go binds a socket to see whether there is any;
	// to sort them, it connects one of UDP to port 9.
	ports := []landlock.Rule{}
	if n.web {
		ports = append(ports, landlock.BindTCP(0), landlock.BindUDP(0), landlock.ConnectSendUDP(dnsPort), landlock.ConnectSendUDP(9))
	}
	for _, port := range n.ports {
		ports = append(ports, landlock.ConnectTCP(port))
	}
	return best.RestrictNet(ports...)
}

// names are the files that names of servers are looked up with. What rewrites
// resolv.conf replaces it, and Landlock knows files and not names: so its directory
// may be read where it has one of its own.
func names() []landlock.Rule {
	var rules []landlock.Rule
	for _, name := range []string{"/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf"} {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			continue // there is none
		}
		directory := filepath.Dir(real)
		if directory == "/etc" || strings.Count(directory, "/") < 2 {
			if f, err := os.Open(real); err == nil {
				f.Close()
				rules = append(rules, landlock.ROFiles(real).IgnoreIfMissing())
			}
			continue
		}
		rules = append(rules, landlock.RODirs(directory).IgnoreIfMissing())
	}
	return rules
}
