package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Put stores a small file on a web server (RFC 9110, section 9.3.4). What the server
// answers beside its code is not read.
func Put(ctx context.Context, t Transport, name string, content []byte) error {
	w, ok := t.(*web)
	if !ok {
		return fmt.Errorf("%s is not a web server: nothing can be put there", t)
	}
	if err := valid(name); err != nil {
		return err
	}
	return w.retry(ctx, name, func() (bool, error) { return false, w.put(ctx, name, content) })
}

// sameHost follows no redirect to another host: a server would have machines write to others
// of their own network, or tell somebody whom nobody has agreed to.
func sameHost(r *http.Request, via []*http.Request) error {
	if r.URL.Host != via[0].URL.Host {
		return fmt.Errorf("%w: it leads to another host: correct the server, or ReportTo= in ota.conf", errRedirect)
	}
	return checkRedirect(r, via)
}

// put is one attempt.
func (w *web) put(ctx context.Context, name string, content []byte) error {
	ctx, cancel := context.WithTimeout(ctx, w.Window)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, w.base.JoinPath(name).String(), bytes.NewReader(content))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	client := *w.client
	client.CheckRedirect = sameHost
	answer, err := client.Do(r)
	if err != nil {
		return noEOF(w.refusedPort(plainError(err)))
	}
	if err := answer.Body.Close(); err != nil {
		return err
	}
	switch {
	case answer.Request.Method != http.MethodPut:
		return fmt.Errorf("%w: to %s, by an answer (301, 302 or 303) after which nothing is put there: have the server answer 307 or 308", errRedirect, answer.Request.URL.Redacted())
	case answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusCreated || answer.StatusCode == http.StatusNoContent:
		return nil
	case answer.StatusCode == http.StatusMethodNotAllowed || answer.StatusCode == http.StatusNotImplemented:
		return errors.Join(errAnswer, fmt.Errorf("it takes no files (%d): it must allow PUT there", answer.StatusCode))
	}
	return failed(answer)
}
