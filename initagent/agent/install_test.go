package agent_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/machinetest"
)

// A stick's program runs where nothing unseals any more, and whatever comes of
// it, the stick itself stays as it is.
func TestInstallerStick(t *testing.T) {
	for _, c := range []struct {
		name, end string
		ends      error
	}{{"installed", "reboot", nil}, {"left", "recovery", errors.New("exit status 1")}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.New(t, nil)
			m.ProgramEnds = c.ends
			for variable, chosen := range map[string]string{words.Variable: "language 1 de", keyboard.Variable: "keymap 1 fr"} {
				m.Vars[variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte(chosen)}
			}
			table, _, err := m.Table()
			if err != nil {
				t.Fatal(err)
			}
			stick := *table
			stick.Partitions = []gpt.Partition{table.Partitions[0], {
				Number: 2, Type: layout.TypeData, Label: layout.InstallerLabel,
				UUID: table.Partitions[1].UUID, First: table.Partitions[1].First, Last: table.Partitions[1].Last,
			}}
			if err := stick.Write(m.Disk); err != nil {
				t.Fatal(err)
			}
			if end := m.Boot(); end != c.end {
				t.Errorf("ends in %s, want %s:\n%s", end, c.end, m.Said.String())
			}
			if len(m.Program) != 2 || !strings.HasSuffix(m.Program[0], "/run/installer/halogen") || m.Program[1] != "install" {
				t.Errorf("ran %q", m.Program)
			}
			if want := []string{"LANG=de.UTF-8", "HALOGEN_KEYMAP=fr"}; !slices.Equal(m.Environment, want) {
				t.Errorf("the installer is told %q, want %q", m.Environment, want)
			}
			after, _, err := m.Table()
			if err != nil || !slices.Equal(after.Partitions, stick.Partitions) {
				t.Errorf("the stick's partitions are %+v (%v)", after.Partitions, err)
			}
		})
	}
}
