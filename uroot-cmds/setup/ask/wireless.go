// Package ask asks a person at a terminal for a wireless network.
//
// The other questions are those of [halogenos.internal/boot/questions].
package ask

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
	"halogenos.internal/uroot-cmds/setup/wifi"
)

// A Radio is a machine's wireless device, such as [wifi.Radio].
type Radio interface {
	// IsOff reports whether it is switched off, and whether by a switch or a key of the machine.
	IsOff(ctx context.Context) (off, bySwitch bool, err error)
	SwitchOn(ctx context.Context) error
	// Networks looks for networks, the strongest first.
	Networks(ctx context.Context) ([]wifi.Network, error)
	// Connect connects to one, and tells how far it is.
	Connect(ctx context.Context, n wifi.Network, password []byte, tell func(string)) error
}

// few is how many networks are shown at once: a screen has 25 lines.
const few = 15

// shown is a network's name, of at most 32 characters: one that is quoted has up to four for a
// byte, and a few of those would push all others off the screen. Their numbers tell them apart.
func shown(n wifi.Network) string {
	const most, cut = 32, "..."
	name := []rune(wifi.Name(n.SSID))
	if len(name) > most {
		return string(name[:most-len(cut)]) + cut
	}
	return string(name)
}

// person is somebody who is asked.
type person struct{ *questions.Person }

// Wireless asks for a wireless network until the machine is in one. It returns questions.ErrLater where
// somebody does not want to be.
func Wireless(ctx context.Context, who *questions.Person, r Radio) error {
	p := &person{who}
	if err := p.switchOn(ctx, r); err != nil {
		return err
	}
	for {
		p.Terminal.Say("Looking for wireless networks ...\n")
		all, err := r.Networks(ctx)
		if err != nil {
			return err
		}
		if joined, err := p.oneOf(ctx, r, all); joined || err != nil {
			return err
		}
	}
}

// oneOf asks for one of these networks until the machine is in one. joined is false where
// somebody wants to look again.
func (p *person) oneOf(ctx context.Context, r Radio, all []wifi.Network) (joined bool, err error) {
	for {
		n, err := p.network(all)
		if n == nil || err != nil {
			return false, err
		}
		if joined, err := p.join(ctx, r, *n); joined || err != nil {
			return joined, err
		}
	}
}

// switchOn asks whether Wi-Fi shall be switched on, where it is off.
func (p *person) switchOn(ctx context.Context, r Radio) error {
	for {
		off, bySwitch, err := r.IsOff(ctx)
		switch {
		case err != nil || !off:
			return err
		case bySwitch:
			p.Terminal.Say("Wi-Fi is switched off by a switch or a key of this machine, or in its firmware's setup.\n")
		}
		yes, err := p.Yes(words.Fixed(map[bool]string{true: "Is it on now?", false: "Wi-Fi is switched off. Switch it on?"}[bySwitch]), true)
		switch {
		case err != nil:
			return err
		case !yes:
			return questions.ErrLater
		case !bySwitch:
			return r.SwitchOn(ctx)
		}
	}
}

// network asks which one it shall be; nil is to look again.
func (p *person) network(all []wifi.Network) (chosen *wifi.Network, err error) {
	var choices []questions.Choice
	for i, n := range all {
		choices = append(choices, questions.Choice{Name: strconv.Itoa(i + 1), Text: fmt.Sprintf("%-4s  %-16s  %s", strings.Repeat("#", 1+n.Strength*4/101), n.Security, shown(n))})
	}
	var b strings.Builder
	for _, c := range choices[:min(len(choices), few)] {
		fmt.Fprintf(&b, "  %3s  %s\n", c.Name, c.Text)
	}
	switch {
	case len(all) == 0:
		b.WriteString("None is seen.\n")
	case len(all) > few:
		fmt.Fprintf(&b, "  and %d more: ? lists them, and ?word those that have the word in them\n", len(all)-few)
	}
	p.Terminal.Say(b.String())
	const hidden, again = "h", "r"
	line, err := p.Put(&questions.Question{Text: words.Fixed("Number of a network, h for a hidden one, r to look again, or later"), ByEnter: questions.Later, Choices: choices, Take: func(line string) (string, error) {
		i, err := strconv.Atoi(line)
		switch {
		case line == hidden || line == again || line == questions.Later:
			return line, nil
		case err != nil || i < 1 || i > len(all):
			return "", fmt.Errorf("%.20q is not the number of a network that is seen", line)
		}
		return line, nil
	}})
	switch {
	case err != nil:
		return nil, err
	case line == questions.Later:
		return nil, questions.ErrLater
	case line == again:
		return nil, nil
	case line == hidden:
		return p.hidden()
	}
	i, err := strconv.Atoi(line)
	if err != nil {
		return nil, err
	}
	return &all[i-1], nil
}

// hidden asks for the name of a network that sends none.
func (p *person) hidden() (*wifi.Network, error) {
	name, err := p.Put(&questions.Question{Text: words.Fixed("Its name"), Take: func(line string) (string, error) {
		_, err := wifi.NewHidden(line, true)
		return line, err
	}})
	if err != nil {
		return nil, err
	}
	password, err := p.Yes(words.Fixed("Has it a password?"), true)
	if err != nil {
		return nil, err
	}
	n, err := wifi.NewHidden(name, password)
	return &n, err
}

// join connects to a network, with its password where it has one. joined is false where
// somebody wants another one, or this one cannot be had.
func (p *person) join(ctx context.Context, r Radio, n wifi.Network) (joined bool, err error) {
	if err := n.Security.Refused(); err != nil {
		p.Terminal.Say(fmt.Sprintf("%s cannot be set up here: %v\n", shown(n), err))
		return false, nil
	}
	for {
		password, err := p.networkPassword(n)
		if err != nil || n.Security.HasPassword() && len(password) == 0 {
			return false, err
		}
		p.Terminal.Say("Connecting to " + shown(n) + " ...\n")
		err = r.Connect(ctx, n, password, func(text string) { p.Terminal.Say("  " + text + "\n") })
		clear(password)
		switch {
		case err == nil:
			p.Terminal.Say("The machine is in the network " + shown(n) + ".\n")
			return true, nil
		case ctx.Err() != nil:
			return false, err
		}
		p.Terminal.Say(fmt.Sprintf("%s: %v\n", shown(n), err))
		if !errors.Is(err, wifi.ErrPassword) {
			return false, nil
		}
	}
}

// networkPassword asks for a network's password; empty is to choose another network, or of one that has
// none. The caller clears it.
func (p *person) networkPassword(n wifi.Network) ([]byte, error) {
	for n.Security.HasPassword() {
		password, err := p.Terminal.Secret("Password of " + shown(n) + " (not shown; Enter goes back): ")
		switch {
		case err != nil || len(password) == 0:
			return nil, err
		case string(password) == questions.Later:
			return nil, questions.ErrLater
		}
		if err = n.CheckPassword(password); err == nil {
			return password, nil
		}
		clear(password)
		p.Terminal.Say(err.Error() + "\n")
	}
	return nil, nil
}
