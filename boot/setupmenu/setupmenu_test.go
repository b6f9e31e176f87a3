package setupmenu

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestOf(t *testing.T) {
	sys := fstest.MapFS{"class/dmi/id/sys_vendor": {Data: []byte("To Be Filled By O.E.M.\n")}, "class/dmi/id/board_vendor": {Data: []byte("ASRock\n")}}
	if m, known := Of(sys); !known || m.Key != "F2 or Del" {
		t.Errorf("%+v, %v", m, known)
	}
	if m, known := Of(fstest.MapFS{}); known {
		t.Errorf("a machine without SMBIOS: %+v", m)
	}
}

// Names as machines have them.
func TestFor(t *testing.T) {
	for _, tt := range []struct{ maker, board, want string }{
		{"LENOVO", "LENOVO", "Reset to Setup Mode"},
		{"Dell Inc.", "Dell Inc.", "Expert Key Management"},
		{"Alienware", "Alienware", "Expert Key Management"},
		{"HP", "HP", "F10"},
		{"Hewlett-Packard", "Hewlett-Packard", "F10"},
		{"HPE", "HPE", "F9"},
		{"ASUSTeK COMPUTER INC.", "ASUSTeK COMPUTER INC.", "OS Type"},
		{"ASUS", "ASUSTeK COMPUTER INC.", "OS Type"},
		{"Micro-Star International Co., Ltd.", "", "Del at power-on"},
		{"Gigabyte Technology Co., Ltd.", "", "Provision Factory Default Keys"},
		{"To Be Filled By O.E.M.", "ASRock", "Provision Factory Default Keys"},
		{"System manufacturer", "ASUSTeK COMPUTER INC.", "OS Type"},
		{"Acer", "RPL", "supervisor password"},
		{"Framework", "Framework", "Erase all"},
		{"Intel(R) Client Systems", "Intel Corporation", "Clear Secure Boot Data"},
		{"Supermicro", "Supermicro", "Reset to Setup Mode"},
		{"QEMU", "", "Delete Pk"},
		{"", "", ""},
		{"Dellux", "Hpx", ""},
		{"TUXEDO", "TUXEDO", ""},
	} {
		m, ok := For(tt.maker, tt.board)
		if ok != (tt.want != "") || ok && !strings.Contains(m.String(), tt.want) {
			t.Errorf("%q, %q: %v, %s; want %q", tt.maker, tt.board, ok, m, tt.want)
		}
		for _, r := range m.String() {
			if r < ' ' || r > '~' {
				t.Errorf("%q: not every console shows %q", tt.maker, r)
			}
		}
	}
}
