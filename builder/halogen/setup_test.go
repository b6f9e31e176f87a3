package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/install/installtest"
)

const goodAnswers = `{"version":1,"host_name":"box","account":{"name":"alice","password_hash":"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"}}
`

func TestSetupCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "setup.json")
	for text, want := range map[string]string{
		goodAnswers:                    "can be taken:\n  name       box\n  account    alice, who may become root\n",
		`{"version":1,"hostname":"x"}`: "hostname",
		`{"version":1,"account":{"name":"alice","password":"x"}}`: "a password that can be read is not taken",
		strings.Repeat(" ", answers.MaxSize+1):                    "setup.json",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errs := run(t, nil, "setup", "--check", file)
		if good := text == goodAnswers; (code == exitOK) != good || !strings.Contains(out+errs, want) || !good && out != "" {
			t.Errorf("%.60s: %d, %q, %q", text, code, out, errs)
		}
	}
}

// The answers are on the ESP of the disk that is installed, and what they mean is said.
func TestInstallWithAnswers(t *testing.T) {
	m := newTarget(t)
	out, err := m.install(installtest.Build(t, nil), installFlags{yes: "S1", no: true, answers: []byte(goodAnswers)})
	if err != nil || !strings.Contains(out, "the answers for the first start, a password's hash among them, lie on the EFI system partition") {
		t.Fatalf("%v\n%s", err, out)
	}
	disk, err := os.ReadFile(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	esp, err := fat.Open(bytes.NewReader(disk[layout.Align : layout.Align+layout.ESPSize]))
	if err != nil {
		t.Fatal(err)
	}
	f, err := esp.Open(answers.OnESP)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	have := make([]byte, len(goodAnswers)+1)
	if n, _ := f.Read(have); string(have[:n]) != goodAnswers {
		t.Errorf("on the ESP: %q", have[:n])
	}
}
