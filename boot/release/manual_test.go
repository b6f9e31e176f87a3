package release

import (
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// release.json(5) explains each member.
func TestManual(t *testing.T) {
	var want []string
	for _, object := range []any{Release{}, File{}, Revocations{}} {
		for field := range reflect.TypeOf(object).NumField() {
			name, _, _ := strings.Cut(reflect.TypeOf(object).Field(field).Tag.Get("json"), ",")
			want = append(want, name)
		}
	}
	testkit.Explains(t, "release.json.5", want)
}
