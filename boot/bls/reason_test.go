package bls

import "testing"

func TestReason(t *testing.T) {
	for _, c := range []struct {
		booted string
		others []string
		want   string
	}{
		{"test_1.efi", nil, "it is the only system"},
		{"test_2.efi", []string{"test_1.efi"}, "it is the newest that was blessed"},
		{"test_1.efi", []string{"test_2+0-3.efi"}, "version 2 has no tries left"},
		{"test_1.efi", []string{"test_2.efi"}, "it was chosen by hand: version 2 would be next"},
		{"test_1.efi", []string{"test_2+2-1.efi"}, "it was chosen by hand: version 2 would be next"},
		{"test_2+2-1.efi", []string{"test_1.efi"}, "it is on trial: try 1 of 3"},
		{"test_2+3.efi", []string{"test_1.efi"}, "it is on trial: try 1 of 4"},
		{"test_2+0-3.efi", []string{"test_1.efi"}, "it is on trial: try 3 of 3"},
		{"test_2+0-3.efi", []string{"test_1+0-3.efi"}, "no system has tries left"},
		{"test_2+0-3.efi", nil, "no system has tries left"},
	} {
		booted, err := Parse(c.booted)
		names := []Name{booted}
		for _, o := range c.others {
			n, perr := Parse(o)
			if perr != nil {
				err = perr
			}
			names = append(names, n)
		}
		if got := Reason(booted, names); err != nil || got != c.want {
			t.Errorf("%s beside %v: %q, %v, want %q", c.booted, c.others, got, err, c.want)
		}
	}
}
