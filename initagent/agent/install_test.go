package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
)

// A stick's program runs where nothing unseals any more, and whatever comes of
// it, the stick itself stays as it is.
func TestInstallerStick(t *testing.T) {
	for _, c := range []struct {
		name, end string
		ends      error
	}{{"installed", "reboot", nil}, {"left", "recovery", errors.New("exit status 1")}} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, nil)
			m.programEnds = c.ends
			table, _, err := m.table()
			if err != nil {
				t.Fatal(err)
			}
			stick := *table
			stick.Partitions = []gpt.Partition{table.Partitions[0], {
				Number: layout.InstallerNumber, Type: layout.TypeData, Label: layout.InstallerLabel,
				UUID: table.Partitions[1].UUID, First: table.Partitions[1].First, Last: table.Partitions[1].Last,
			}}
			if err := stick.Write(m.disk); err != nil {
				t.Fatal(err)
			}
			if end := m.boot(); end != c.end {
				t.Errorf("ends in %s, want %s:\n%s", end, c.end, m.said.String())
			}
			if len(m.program) != 2 || !strings.HasSuffix(m.program[0], installerProgram) || m.program[1] != "install" {
				t.Errorf("ran %q", m.program)
			}
			after, _, err := m.table()
			if err != nil || !slices.Equal(after.Partitions, stick.Partitions) {
				t.Errorf("the stick's partitions are %+v (%v)", after.Partitions, err)
			}
		})
	}
}
