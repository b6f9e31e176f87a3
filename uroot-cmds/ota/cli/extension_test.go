package cli

import (
	"strings"
	"testing"

	"halogenos.internal/uroot-cmds/ota/machine"
)

func TestExtension(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"extension"}, exitUsage, "usage: ota extension list"},
		{[]string{"extension", "enable"}, exitUsage, "usage: ota extension list"},
		{[]string{"extension", "disable", "vpn", "--from", "x"}, exitUsage, "usage: ota extension list"},
		{[]string{"extension", "list"}, exitDone, "version 7, which runs:\n  no extensions\n"},
		{[]string{"extension", "list", "--json"}, exitDone, `"extensions": []`},
		{[]string{"extension", "enable", "vpn"}, exitFailed, `the release that runs has no extension "vpn": it has none`},
		{[]string{"extension", "disable", "vpn"}, exitFailed, "no extension vpn is enabled"},
		{[]string{"extension", "--help"}, exitDone, "leave them out from the next start on"},
	} {
		code, out, errs := ota(t, dir, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: %d, %s%s, want %d, %s", c.args, code, out, errs, c.code, c.want)
		}
	}
}

func TestExtensionStates(t *testing.T) {
	for want, c := range map[string]struct {
		role machine.Role
		e    machine.Extension
	}{
		"not enabled; its file is not there, and `ota extension enable vpn` fetches it":           {machine.RoleRuns, machine.Extension{}},
		"enabled, essential, part of this system; its file is there":                              {machine.RoleRuns, machine.Extension{Enabled: true, Essential: true, Opened: true, There: true}},
		"enabled, part of the system after the next start; its file is there":                     {machine.RoleRuns, machine.Extension{Enabled: true, There: true}},
		"enabled, left out at this start: it is torn; its file is there":                          {machine.RoleRuns, machine.Extension{Enabled: true, There: true, LeftOut: "it is torn"}},
		"enabled; its file is not there":                                                          {machine.Gone, machine.Extension{Enabled: true, Begun: 4096}},
		"enabled; 4.0 KiB of its file are there, and `ota extension enable vpn` fetches the rest": {machine.RoleWaits, machine.Extension{Enabled: true, Begun: 4096}},
	} {
		c.e.Name = "vpn"
		if got := state(c.role, c.e); got != want {
			t.Errorf("%+v: %s, want %s", c.e, got, want)
		}
	}
}
