package qemutests

import (
	"slices"
	"strings"
	"testing"

	"halogenos.internal/builder/vm"
)

// TestConsoleAsked: somebody presses the key while a machine starts, at the serial line
// or at the keyboard. The console opens, and nothing unlocks there but the recovery key.
// FAULTS 77, 79
func TestConsoleAsked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		o     vm.Options
		press func(t *testing.T, g *Guest)
	}{
		{"serial", vm.Options{}, func(t *testing.T, g *Guest) { g.typed("r") }},
		{"keyboard", vm.Options{Display: true}, func(t *testing.T, g *Guest) {
			g.Expect(`halogen: drivers \(`)
			ctx, cancel := g.wait()
			defer cancel()
			must(t, g.SendKeys(ctx, "r"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := provisioned(t)
			if tt.name == "serial" { // the other starts from power on
				p = provisionedAtInit(t)
			}
			g := Machine(t, Options{State: p.State, VM: tt.o})
			g.Expect(`halogen: press r for the recovery console`)
			tt.press(t, g)
			g.Expect(`RECOVERY: the recovery console was asked for`)
			if open := g.expectConsole(); slices.Contains(open, "root") {
				t.Errorf("open in the recovery console: %q", open)
			}
			if tt.name != "serial" {
				return
			}
			g.typeLine("unlock")
			g.Expect(`Recovery key [^\n]*: `)
			g.typeLine(wrongKey(p.Notes[recoveryKeyNote]))
			g.Expect(`Recovery key [^\n]*: `)
			g.typeLine("")
			if open := g.expectDevices(); slices.Contains(open, "root") {
				t.Errorf("open after a wrong recovery key: %q", open)
			}
			g.typeLine("unlock")
			g.Expect(`Recovery key [^\n]*: `)
			g.typeLine(p.Notes[recoveryKeyNote])
			g.Expect(`The root partition is open`)
			g.typeLine("exit")
			r := g.Boot()
			checkSecured(t, "after the console", r)
			if text := g.Console().Text(); strings.Count(text, asksForKeyText) > 0 {
				t.Error("the boot after the console asks for the recovery key")
			}
		})
	}
}

// asksForKeyText is asksForKey as it is shown.
const asksForKeyText = "(an empty line opens the recovery console)"
