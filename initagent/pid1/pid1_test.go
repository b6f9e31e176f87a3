package pid1

import "testing"

// FAULTS 77
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		pid, user int
		args      []string
		good      bool
	}{
		{1, 0, []string{"/init"}, true}, {1, 0, []string{"/bin/initagent"}, true}, {1, 0, []string{"/init", "sh"}, true},
		{1, 0, []string{"/bin/sh"}, false}, {1, 0, []string{"/bin/bb", "init"}, false}, {1, 0, nil, false}, {1, 0, []string{""}, false},
		{1, 0, []string{"ota", "worker"}, false}, {1, 65534, []string{"ota", "worker"}, true},
		{7, 0, []string{"/bin/sh"}, true}, {7, 0, nil, true},
	} {
		if err := check(c.pid, c.user, c.args); (err == nil) != c.good {
			t.Errorf("process %d, %q: %v", c.pid, c.args, err)
		}
	}
}
