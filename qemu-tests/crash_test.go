package qemutests

import "testing"

// What a kernel has said when initagent crashed, and what it says when nothing of ours has.
func TestTellsCrash(t *testing.T) {
	for text, want := range map[string]bool{
		"halogen: mend (9.25 s): the ESP is not as it was left\r\n[   97.945346] init[1]: segfault at 0 ip 0000000000870782 sp 000035c939c28e00 error 4 in bb[470782,400000+818000]\r\n": true,
		"[   97.975507] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200\r\n":                                                                                     true,
		"[   12.000000] Kernel panic - not syncing: sysrq triggered crash\r\n":                                                                                                           false,
		"[   12.000000] bash[812]: segfault at 0 ip 0000000000870782\r\nhalogen: handing over 25.12 s after initagent started\r\n":                                                       false,
	} {
		if said := crash.FindString(text); (said != "") != want {
			t.Errorf("%q: %q, want a crash: %v", text, said, want)
		}
	}
}
