package keys

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/trustelem/zxcvbn"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"halogenos.internal/boot/secretmem"
)

const maxPassword = 4000 // bytes

// A Password lies in memory that is never swapped or dumped. The one who got it
// calls Wipe.
type Password struct {
	page []byte
	text []byte // of the page
}

// newPassword makes the memory for one.
func newPassword() (*Password, error) {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("get memory for a password: %w", err)
	}
	p := &Password{page: page}
	if err := errors.Join(unix.Mlock(page), unix.Madvise(page, unix.MADV_DONTDUMP)); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the memory of a password: %w", err), p.Wipe())
	}
	return p, nil
}

// take makes the first line of what was read into the page the password.
func (p *Password) take(n int) error {
	text, _, _ := bytes.Cut(p.page[:n], []byte("\n"))
	p.text = bytes.TrimSuffix(text, []byte("\r"))
	switch {
	case len(p.text) == 0:
		return errors.New("the password is empty: take six words chosen by dice, or 14 random characters")
	case len(p.text) > maxPassword:
		return fmt.Errorf("the password has more than %d bytes", maxPassword)
	}
	return nil
}

// Bytes are the password, until Wipe.
func (p *Password) Bytes() []byte { return p.text }

// Wipe overwrites the password and gives its memory back.
func (p *Password) Wipe() error {
	if p == nil || p.page == nil {
		return nil
	}
	clear(p.page)
	err := errors.Join(unix.Munlock(p.page), unix.Munmap(p.page))
	p.page, p.text = nil, nil
	return err
}

// PasswordOf returns a copy of a text as a password and overwrites the text.
func PasswordOf(text []byte) (*Password, error) {
	defer clear(text)
	p, err := newPassword()
	if err != nil {
		return nil, err
	}
	if err := p.take(copy(p.page, text)); err != nil {
		return nil, errors.Join(err, p.Wipe())
	}
	return p, nil
}

// ReadPassword reads the first line of a file, such as a container's secret. It
// goes from the kernel into the locked memory, and nowhere else.
func ReadPassword(path string) (*Password, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	defer f.Close()
	p, err := newPassword()
	if err != nil {
		return nil, err
	}
	n, err := io.ReadFull(f, p.page)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err == nil {
		err = p.take(n)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read password from %s: %w", path, err), p.Wipe())
	}
	return p, nil
}

// AskPassword reads a password from a terminal, which does not show it.
func AskPassword(terminal *os.File, prompt io.Writer, question string) (*Password, error) {
	if !term.IsTerminal(int(terminal.Fd())) {
		return nil, errors.New("ask for the password: there is no terminal: name the file with the password")
	}
	fmt.Fprintf(prompt, "%s: ", question)
	p, err := using(func() (*Password, error) {
		text, err := term.ReadPassword(int(terminal.Fd()))
		if err != nil {
			clear(text)
			return nil, fmt.Errorf("ask for the password: %w", err)
		}
		return PasswordOf(text)
	})
	fmt.Fprintln(prompt)
	return p, err
}

// AgentPassword gets a password from gpg-agent, which asks for it with its
// pinentry, or has it from before under the ID, a word.
func AgentPassword(ctx context.Context, id, question string) (*Password, error) {
	if id == "" || strings.ContainsAny(id, " \n\x00") {
		return nil, fmt.Errorf("get the password from gpg-agent: %q is not a word", id)
	}
	return using(func() (*Password, error) { return agentPassword(ctx, id, question) })
}

// maxAnswer is the largest answer of gpg-agent's that is read, in bytes: each
// character of a password may take three.
const maxAnswer = 4 * maxPassword

// AgentEnviron is the environment for a program of GnuPG whose standard input is
// not the terminal: gpg-agent's pinentry asks where GPG_TTY says, and without it
// where standard input is.
func AgentEnviron() []string {
	env := os.Environ()
	if os.Getenv("GPG_TTY") != "" || !term.IsTerminal(int(os.Stdin.Fd())) {
		return env
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", os.Stdin.Fd()))
	if err != nil {
		return env // a pinentry with a window needs none
	}
	return append(env, "GPG_TTY="+name)
}

func agentPassword(ctx context.Context, id, question string) (*Password, error) {
	// A '+' is a space in the Assuan protocol.
	c := exec.CommandContext(ctx, "gpg-connect-agent", "--quiet")
	c.Env = AgentEnviron()
	c.Stdin = strings.NewReader("GET_PASSPHRASE --data " + id + " X Password " + url.QueryEscape(question) + "\n/bye\n")
	var said bytes.Buffer
	c.Stderr = &said
	// Read here: the goroutine that c.Output starts would leave copies behind.
	stdout, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("get the password from gpg-agent: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(stdout, maxAnswer))
	defer clear(out)
	if err := errors.Join(err, c.Wait()); err != nil {
		return nil, fmt.Errorf("get the password from gpg-agent: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	for line := range bytes.Lines(out) {
		line = bytes.TrimRight(line, "\r\n")
		if data, ok := bytes.CutPrefix(line, []byte("D ")); ok {
			return PasswordOf(unescape(data))
		}
		if text, ok := bytes.CutPrefix(line, []byte("ERR ")); ok {
			return nil, fmt.Errorf("get the password from gpg-agent: %s", text)
		}
	}
	return nil, errors.New("get the password from gpg-agent: it gave none")
}

// unescape replaces %XX in place.
func unescape(data []byte) []byte {
	out := data[:0]
	for i := 0; i < len(data); i++ {
		if data[i] == '%' && i+2 < len(data) {
			// Not by fmt, whose buffers outlive the call.
			var b [1]byte
			if _, err := hex.Decode(b[:], data[i+1:i+3]); err == nil {
				out = append(out, b[0])
				i += 2
				continue
			}
		}
		out = append(out, data[i])
	}
	return out
}

// leastGuesses is how many guesses a password must withstand, a power of
// ten. Anyone who steals a key file guesses as fast as machines can: at a million
// guesses a second, which the derivation of the keys made here leaves a dozen
// graphics cards, 10^14 take three years.
const leastGuesses = 1e14

// Strong refuses a password that can be guessed (Wheeler, "zxcvbn: Low-Budget
// Password Strength Estimation", USENIX Security 2016).
func (p *Password) Strong() error {
	var guesses float64
	secretmem.Do(func() {
		guesses = zxcvbn.PasswordStrength(string(p.text[:min(len(p.text), 100)]), nil).Guesses
	})
	if guesses < leastGuesses {
		return fmt.Errorf("the password is too weak: about 10^%.0f guesses find it, and it must take 10^%.0f: take six words chosen by dice, or 14 random characters", math.Log10(guesses), math.Log10(leastGuesses))
	}
	return nil
}
