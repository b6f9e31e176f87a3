package boot_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "halogenos.internal/"

type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// under reports whether a package is part of one of the directories.
func under(path string, directories ...string) bool {
	return slices.ContainsFunc(directories, func(f string) bool {
		return path == module+f || strings.HasPrefix(path, module+f+"/")
	})
}

// forTests reports whether a package serves tests alone, which its name says.
func forTests(path string) bool {
	return under(path, "boot/testkit", "qemu-tests") || strings.HasPrefix(path, module) && strings.HasSuffix(path, "test")
}

// Imports point one way: the commands of the machine use the boot's packages,
// those use the contract, and the builder knows nothing of the machine. The tests
// start the parts as programs; only their live medium loads its drivers as the
// machine does.
func TestImportsPointOneWay(t *testing.T) {
	may := map[string][]string{
		"boot":       {"boot"},
		"initagent":  {"boot", "initagent"},
		"uroot-cmds": {"boot", "initagent", "uroot-cmds"},
		// Servers are read by one reader, no matter who reads.
		"builder":    {"boot", "builder", "uroot-cmds/ota/server"},
		"qemu-tests": {"boot", "builder", "qemu-tests", "initagent/hw"},
	}
	seen := map[string]bool{}
	for _, p := range packages(t) {
		directory, _, _ := strings.Cut(strings.TrimPrefix(p.ImportPath, module), "/")
		allowed, ok := may[directory]
		if !ok {
			t.Errorf("%s lies in none of the project's directories", p.ImportPath)
			continue
		}
		seen[directory] = true
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) && !under(i, allowed...) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
	if !seen["boot"] || !seen["initagent"] || !seen["builder"] {
		t.Errorf("looked only at %v", seen)
	}
}

// The contract is pure: what reaches the machine is elsewhere. testkit and
// blocktest serve tests alone.
func TestBootIsPure(t *testing.T) {
	impure := func(i string) bool {
		return slices.Contains([]string{"os", "os/exec", "syscall", "unsafe", "net"}, i) ||
			strings.HasPrefix(i, "net/") || strings.HasPrefix(i, "golang.org/x/sys")
	}
	for _, p := range packages(t) {
		if !under(p.ImportPath, "boot") || under(p.ImportPath, "boot/testkit") {
			continue
		}
		for _, i := range p.Imports {
			if impure(i) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

// What only tests may use reaches no program. FAULTS 15
func TestForbiddenImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			if forTests(i) && !forTests(p.ImportPath) {
				t.Errorf("%s imports %s outside its tests", p.ImportPath, i)
			}
		}
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if strings.HasPrefix(i, "golang.org/x/crypto/openpgp") {
				t.Errorf("%s imports %s, which is unmaintained and accepts weak signatures", p.ImportPath, i)
			}
		}
	}
}
