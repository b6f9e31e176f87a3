package settings

import (
	"os"
	"regexp"
	"testing"

	"halogenos.internal/boot/testkit"
)

// ota.conf(5) explains each key that is read.
func TestManual(t *testing.T) {
	source, err := os.ReadFile("settings.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, key := range regexp.MustCompile(`(?m)^\tcase "(\w+)":$`).FindAllStringSubmatch(string(source), -1) {
		want = append(want, key[1])
	}
	if len(want) != 14 {
		t.Errorf("the source reads the keys %q", want)
	}
	testkit.Explains(t, "ota.conf.5", want)
}
