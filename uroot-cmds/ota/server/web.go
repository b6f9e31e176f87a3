package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/boot/manifest"
)

// Bounds of what a server may do.
const (
	maxHeaders   = 64 << 10 // bytes
	maxRedirects = 5
	dialTimeout  = 15 * time.Second
	maxPause     = time.Minute
)

// web reads from a web server over HTTP/1.1 or 2, through one client that keeps
// its connections.
type web struct {
	base   *url.URL // without a password
	client *http.Client
	Options
	limit    *limiter
	progress *progress
}

func newWeb(address string, o Options) (*web, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("server's address: %w", plainError(err))
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("server %q is not an http or https address", u.Redacted())
	}
	o = o.withDefaults()
	roots, err := o.roots()
	if err != nil {
		return nil, err
	}
	through, err := o.proxy()
	if err != nil {
		return nil, err
	}
	password := u.User
	u.User = nil
	t := &http.Transport{
		Proxy:                  through,
		OnProxyConnectResponse: connected,
		DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, Time: o.now, RootCAs: roots},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  o.Window,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: maxHeaders,
		MaxConnsPerHost:        16,
		MaxIdleConnsPerHost:    8,
		DisableCompression:     true, // the archive is compressed, and a bomb would be unpacked unseen
		ForceAttemptHTTP2:      true,
	}
	w := &web{base: u, Options: o, limit: newLimiter(o.RateLimit), progress: newProgress(u.String(), o.RateLimit)}
	w.client = &http.Client{Transport: identified{t, u, password, o.UserAgent}, CheckRedirect: checkRedirect}
	return w, nil
}

// now is the best that is known of the time: a clock without battery starts in 1970.
func (o Options) now() time.Time {
	if now := time.Now(); now.After(o.NotBefore) {
		return now
	}
	return o.NotBefore
}

// proxy says through what requests go.
func (o Options) proxy() (func(*http.Request) (*url.URL, error), error) {
	switch o.Proxy {
	case "":
		return http.ProxyFromEnvironment, nil
	case NoProxy:
		return nil, nil
	}
	u, err := ParseProxy(o.Proxy)
	return http.ProxyURL(u), err
}

// ParseProxy reads a proxy's address.
func ParseProxy(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("cannot be read as a proxy's address: write one like http://proxy.example.org:3128") // which may hold a password
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" || u.Host == "":
		return nil, fmt.Errorf("%.100q is neither none nor an address like http://proxy.example.org:3128 (http, https or socks5)", u.Redacted())
	}
	return u, nil
}

// roots are the certificates of authorities; nil stands for the system's.
func (o Options) roots() (*x509.CertPool, error) {
	if len(o.CA) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(o.CA) {
		return nil, errors.New("the file of CA= or --ca holds no certificate in PEM form")
	}
	return pool, nil
}

// identified sends the password to the server it is for and to no other,
// wherever redirects lead.
type identified struct {
	next      http.RoundTripper
	base      *url.URL
	password  *url.Userinfo
	userAgent string
}

// RoundTrip implements http.RoundTripper.
func (i identified) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Del("Authorization")
	r.Header.Del("Referer")
	r.Header.Set("User-Agent", i.userAgent)
	r.Header.Set("Accept-Encoding", "identity")
	if i.password != nil && r.URL.Scheme == i.base.Scheme && r.URL.Host == i.base.Host {
		secret, _ := i.password.Password()
		r.SetBasicAuth(i.password.Username(), secret)
	}
	return i.next.RoundTrip(r)
}

// errRedirect marks a redirect that is not followed.
var errRedirect = errors.New("redirect is not followed")

func checkRedirect(r *http.Request, via []*http.Request) error {
	from, to := via[len(via)-1].URL.Scheme, r.URL.Scheme
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w: more than %d of them: correct the server, or its address (Server= in ota.conf)", errRedirect, maxRedirects)
	case to != from && !(from == "http" && to == "https"):
		return fmt.Errorf("%w: it leads from %s to %s: correct the server, or its address (Server= in ota.conf)", errRedirect, from, to)
	}
	r.URL.User = nil
	return nil
}

// String implements Transport.
func (w *web) String() string { return w.base.String() }

// A statusError is an answer other than the file.
type statusError struct {
	code  int
	after time.Duration // the server wants us to wait so long
}

func (e *statusError) Error() string {
	if e.after > maxPause {
		return fmt.Sprintf("server answers %d %s, and asks to come back in %s: run this again then", e.code, http.StatusText(e.code), e.after.Round(time.Second))
	}
	return fmt.Sprintf("server answers %d %s%s", e.code, http.StatusText(e.code), advice(e.code))
}

func (e *statusError) Is(target error) bool {
	// Object stores answer 403 where they will not say that there is nothing.
	return target == ErrNotFound && (e.code == http.StatusNotFound || e.code == http.StatusForbidden || e.code == http.StatusGone)
}

// temporary reports whether it is worth asking again.
func temporary(err error) bool {
	if status, ok := errors.AsType[*statusError](err); ok {
		if status.after > maxPause {
			return false // nobody waits here for so long
		}
		switch status.code {
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	for _, final := range []error{errRedirect, errAnswer, errSink, ErrNoRanges, context.Canceled} {
		if errors.Is(err, final) {
			return false
		}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*crawlError](err); ok {
		return false
	}
	if refused, ok := errors.AsType[*proxyError](err); ok {
		return refused.code >= http.StatusInternalServerError
	}
	return true
}

// errAnswer marks an answer that no server gives that works.
var errAnswer = errors.New("the server's answer cannot be used")

// retry calls try until it succeeds or fails for good. try says whether it got on:
// then what failed before does not count.
func (w *web) retry(ctx context.Context, name string, try func() (got bool, err error)) error {
	pause := w.Pause
	for attempt := 1; ; attempt++ {
		got, err := try()
		if err == nil || errors.Is(err, io.EOF) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if got && !errors.Is(err, ErrSlow) {
			attempt, pause = 1, w.Pause/4
		}
		if attempt >= w.Attempts || !temporary(err) {
			return fmt.Errorf("%s: %w", name, err)
		}
		// Half of the pause is chance, so that machines that failed together do
		// not come back together.
		wait := pause/2 + rand.N(pause/2+1)
		if status, ok := errors.AsType[*statusError](err); ok {
			wait = max(wait, status.after)
		}
		w.Note(fmt.Sprintf("%s: %v; trying again in %s", name, err, wait.Round(100*time.Millisecond)))
		w.progress.wait()
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		if gone := context.Cause(ctx); gone != nil {
			return gone
		}
		if slow := w.progress.got(0); slow != nil {
			return fmt.Errorf("%w. The last answer, to %s: %w", slow, name, err)
		}
		pause = min(2*max(pause, 1), maxPause)
	}
}

// enough reports whether so much of a rest arrived that it counts as getting on: a
// quarter of it, or 4 KiB. A server that sends a byte a request does not.
func enough(n, rest int64) bool { return n > 0 && n >= min(4<<10, (rest+3)/4) }

// request sends one request. The answer's body is guarded against a server that
// does not get on.
func (w *web) request(ctx context.Context, name string, header map[string]string) (*http.Response, error) {
	if err := valid(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base.JoinPath(name).String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for key, value := range header {
		r.Header.Set(key, value)
	}
	w.progress.wait()
	answer, err := w.client.Do(r)
	_ = w.progress.got(0) // the reader of the body is told
	if err != nil {
		cancel(nil)
		return nil, noEOF(w.refusedPort(plainError(err))) // a connection that was closed is no end of a file
	}
	answer.Body = w.guard(ctx, cancel, answer.Body)
	return answer, nil
}

// refusedPort explains a connection that this machine's kernel refuses: where the
// fetch is confined, a redirect to a port that no address of ours names.
func (w *web) refusedPort(err error) error {
	dial, ok := errors.AsType[*net.OpError](err)
	if !ok || dial.Op != "dial" || !errors.Is(err, fs.ErrPermission) { // EACCES of Landlock, EPERM of a firewall
		return err
	}
	_, port, splitErr := net.SplitHostPort(fmt.Sprint(dial.Addr))
	if splitErr != nil || port == w.port() || port == "80" || port == "443" {
		return fmt.Errorf("%w: this machine itself refuses the connection: its firewall or a policy (SELinux, AppArmor) must allow it", err)
	}
	return fmt.Errorf("%w: it leads to port %s, and the fetch may connect to the ports 80 and 443 and those of Server= and Proxy= alone (%w): write the address that it leads to into Server= of ota.conf, or have it lead to port 443", errRedirect, port, err)
}

// port is that of the server's address.
func (w *web) port() string {
	return cmp.Or(w.base.Port(), map[string]string{"http": "80", "https": "443"}[w.base.Scheme])
}

// failed is the error of an answer that is not the one hoped for.
func failed(answer *http.Response) error {
	e := &statusError{code: answer.StatusCode}
	after := answer.Header.Get("Retry-After") // seconds or a date: RFC 9110, section 10.2.3
	if seconds, err := strconv.ParseUint(after, 10, 31); err == nil {
		e.after = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(after); err == nil {
		from := time.Now()
		if sent, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
			from = sent // by the same clock, whatever ours says
		}
		e.after = max(0, date.Sub(from))
	}
	return e
}

// Get implements Transport.
func (w *web) Get(ctx context.Context, name string, limit int64) (content []byte, err error) {
	err = w.retry(ctx, name, func() (bool, error) {
		content, err = w.get(ctx, name, limit)
		return false, err
	})
	return content, err
}

// compressed reports whether a small file was compressed on the way. Apache's
// AddEncoding calls gzip whatever has .gz in its name, as 7.tar.gz.pgp has.
func compressed(coding string, body []byte) bool {
	switch strings.ToLower(coding) {
	case "", "identity":
		return false
	case "gzip", "x-gzip":
		return bytes.HasPrefix(body, []byte{0x1f, 0x8b}) // RFC 1952, section 2.3.1
	}
	return true
}

// get is one attempt at a small file.
func (w *web) get(ctx context.Context, name string, limit int64) ([]byte, error) {
	// These files change, and caches on the way must not hide it.
	answer, err := w.request(ctx, name, map[string]string{"Cache-Control": "no-cache"})
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, failed(answer)
	}
	// A page in the file's place may be larger than the file.
	b, err := io.ReadAll(io.LimitReader(answer.Body, max(limit, 512)+1))
	coding := answer.Header.Get("Content-Encoding")
	switch {
	case compressed(coding, b):
		return nil, fmt.Errorf("%w: it is compressed (Content-Encoding: %.20q), which nobody asked for: switch that off for these files on the server, or on what lies before it (nginx: gzip off; Apache: SetEnv no-gzip 1)", errAnswer, coding)
	case manifest.IsPage(b):
		return nil, fmt.Errorf("%w: it is a web page: %w", errAnswer, manifest.ErrPage)
	case answer.ContentLength > limit:
		return nil, fmt.Errorf("%w: %d bytes, more than the %d that the file may have", errAnswer, answer.ContentLength, limit)
	case err != nil:
		return nil, err
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("%w: more than the %d bytes that the file may have", errAnswer, limit)
	}
	return b, nil
}

// Open implements Transport. Where the server sends parts of files, a connection
// that is cut is no end: the rest is asked for.
func (w *web) Open(ctx context.Context, name string) (body io.ReadCloser, info Info, err error) {
	err = w.retry(ctx, name, func() (bool, error) {
		answer, err := w.request(ctx, name, nil)
		if err != nil {
			return false, err
		}
		if answer.StatusCode != http.StatusOK {
			return false, errors.Join(failed(answer), answer.Body.Close())
		}
		info = Info{answer.ContentLength}
		body = &resumed{w: w, ctx: ctx, name: name, size: answer.ContentLength, body: answer.Body, left: w.Attempts}
		return false, nil
	})
	return body, info, err
}

// Range implements Transport. What arrived before a failure is kept, and only
// the rest asked for again.
func (w *web) Range(ctx context.Context, name string, to io.Writer, off, n int64) (int64, Info, error) {
	info := Info{Size: -1}
	s := &sink{w: to}
	err := w.retry(ctx, name, func() (bool, error) {
		before := s.n
		now, err := w.part(ctx, name, s, off+s.n, n-s.n)
		got := enough(s.n-before, n-before)
		if now.Size >= 0 {
			info = now
		}
		switch {
		case s.err != nil:
			return got, fmt.Errorf("%w: %w", errSink, s.err)
		case err != nil:
			return got, err
		case s.n == n:
			return got, nil
		case off+s.n == info.Size:
			return got, io.EOF
		}
		return got, fmt.Errorf("%d of %d bytes from byte %d on arrived", s.n, n, off)
	})
	if s.err != nil {
		err = s.err // as it was, for anyone who has it
	}
	return s.n, info, err
}

// errSink marks an error that is not the server's.
var errSink = errors.New("what arrived is not taken")

// ask sends one request for a part, and returns the answer that gives it with how
// much that is and how large the file is. Whether it is still the file of a moment
// ago is not asked: mirrors behind one name differ in what they say of it, and
// anyone who reads compares all of it with what was signed.
func (w *web) ask(ctx context.Context, name string, off, n int64) (answer *http.Response, length Info, err error) {
	answer, err = w.request(ctx, name, map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", off, off+n-1)})
	if err != nil {
		return nil, length, err
	}
	switch {
	case answer.StatusCode == http.StatusOK:
		err = ErrNoRanges
	case answer.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		err = fmt.Errorf("%w: it ends before byte %d", ErrChanged, off)
	case answer.StatusCode != http.StatusPartialContent:
		err = failed(answer)
	default:
		if answer.ContentLength, length.Size, err = contentRange(answer.Header.Get("Content-Range"), off, n); err == nil {
			return answer, length, nil
		}
	}
	return nil, length, errors.Join(err, answer.Body.Close())
}

// part passes on what the server gives of a part.
func (w *web) part(ctx context.Context, name string, to io.Writer, off, n int64) (Info, error) {
	answer, info, err := w.ask(ctx, name, off, n)
	if err != nil {
		return Info{Size: -1}, err
	}
	defer answer.Body.Close()
	got, err := io.CopyN(to, answer.Body, answer.ContentLength)
	if err != nil {
		return info, fmt.Errorf("connection ended %d bytes early: %w", answer.ContentLength-got, noEOF(err))
	}
	// One byte more would be another answer than the header's.
	if extra, _ := answer.Body.Read(make([]byte, 1)); extra > 0 {
		return info, fmt.Errorf("%w: more than the range that it names", errAnswer)
	}
	return info, nil
}

// noEOF keeps an early end from looking like the file's.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("unexpected end")
	}
	return err
}

// contentRange reads the Content-Range of an answer (RFC 9110, section 14.4) to
// a request for up to want bytes from off on.
func contentRange(value string, off, want int64) (length, total int64, err error) {
	wrong := fmt.Errorf("%w: asked for bytes %d to %d, it sends %.80q", errAnswer, off, off+want-1, value)
	span, size, ok := strings.Cut(strings.TrimPrefix(value, "bytes "), "/")
	first, last, both := strings.Cut(span, "-")
	if !ok || !both || !strings.HasPrefix(value, "bytes ") {
		return 0, 0, wrong
	}
	var n [3]int64
	for i, s := range []string{first, last, size} {
		v, err := strconv.ParseUint(s, 10, 62)
		if err != nil || s[0] == '+' {
			return 0, 0, wrong
		}
		n[i] = int64(v)
	}
	if n[0] != off || n[1] < n[0] || n[1]-n[0]+1 > want || n[1] >= n[2] {
		return 0, 0, wrong
	}
	return n[1] - n[0] + 1, n[2], nil
}
