package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// advice is what to do about an answer, where something can be done.
func advice(code int) string {
	switch code {
	case http.StatusUnauthorized:
		return ": it wants a user and a password that it knows: https://USER:PASSWORD@HOST/..."
	case http.StatusProxyAuthRequired:
		return ": " + proxyPassword
	case http.StatusNetworkAuthenticationRequired:
		return ": the network wants a login first (open a browser)"
	}
	if code >= 500 || code == http.StatusTooManyRequests {
		return ": try again later"
	}
	return ""
}

const (
	proxyPassword = "the proxy wants a user and a password that it knows: http://USER:PASSWORD@HOST:PORT"
	proxySettings = "its address comes from Proxy= in ota.conf, --proxy of halogen, or the environment (https_proxy, http_proxy); \"none\" goes without one"
)

// A proxyError is what a proxy answers that does not connect. It says nothing of the
// server: a proxy's 404 is not a missing file.
type proxyError struct {
	proxy *url.URL
	code  int
}

// Error implements error.
func (e *proxyError) Error() string {
	what := proxySettings
	if e.code == http.StatusProxyAuthRequired {
		what = proxyPassword
	}
	return fmt.Sprintf("proxy %s does not connect to the server, it answers %d %s: %s", e.proxy.Host, e.code, http.StatusText(e.code), what)
}

// connected looks at a proxy's answer to CONNECT.
func connected(_ context.Context, proxy *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyError{proxy, answer.StatusCode}
}

// plainError takes the address off an error, which is said elsewhere and may
// name a place that a redirect chose, and says what to do about it.
func plainError(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "proxyconnect" {
		return fmt.Errorf("proxy cannot be reached: %w: %s", dial.Err, proxySettings)
	}
	// Go has no type for it: net/http says so, and crypto/tls of what is not TLS.
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return fmt.Errorf("%w: this port speaks http and not https: correct the port, or the address's beginning", err)
	}
	lookup, isLookup := errors.AsType[*net.DNSError](err)
	switch {
	case isLookup && lookup.IsNotFound:
		return fmt.Errorf("%w: check the server's name, this machine's network and its DNS (/etc/resolv.conf)", err)
	case isLookup:
		return fmt.Errorf("%w: check this machine's network and its DNS (/etc/resolv.conf)", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: check the address and its port, and that the server runs", err)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Errorf("%w: check this machine's network", err)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%w: if the server has certificates of its own, name the file with their authority's (CA= in ota.conf, --ca of halogen, or SSL_CERT_FILE); if not, somebody intercepts the connection", err)
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("%w: use the name that the server's certificate has", err)
	}
	if wrong, ok := errors.AsType[x509.CertificateInvalidError](err); ok && wrong.Reason == x509.Expired {
		return fmt.Errorf("%w: if this machine's clock is wrong, set it (date); if not, the one who runs the server must renew its certificate", err)
	}
	return err
}
