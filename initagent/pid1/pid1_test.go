package pid1

import "testing"

// FAULTS 77
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		pid  int
		args []string
		good bool
	}{
		{1, []string{"/init"}, true}, {1, []string{"/bin/initagent"}, true}, {1, []string{"/init", "sh"}, true},
		{1, []string{"/bin/sh"}, false}, {1, []string{"/bin/bb", "init"}, false}, {1, nil, false}, {1, []string{""}, false},
		{7, []string{"/bin/sh"}, true}, {7, nil, true},
	} {
		if err := check(c.pid, c.args); (err == nil) != c.good {
			t.Errorf("process %d, %q: %v", c.pid, c.args, err)
		}
	}
}
