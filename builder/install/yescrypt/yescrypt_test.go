package yescrypt

import (
	"bytes"
	"crypto/rand"
	"io"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/testkit"
)

// The C library of this machine makes the same of it.
func TestByLibxcrypt(t *testing.T) {
	perl := testkit.Need(t, "perl")
	if probe := testkit.Run(t, perl, "-e", `print crypt("x", "\$y\$j9T\$F5Jx5fExrKuPp53xLKQ..1")`); !strings.HasPrefix(probe, "$y$") {
		testkit.Skip(t, "this machine's crypt(3) knows no yescrypt")
	}
	for _, password := range []string{"x", "correct horse battery staple", "pass:word äöü €", `"$y$\'`, strings.Repeat("long", 100)} {
		hash, err := Hash([]byte(password), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if theirs := testkit.Run(t, perl, "-e", `print crypt($ARGV[0], $ARGV[1])`, password, hash); theirs != hash {
			t.Errorf("%q: %s, and crypt(3) has %s", password, hash, theirs)
		}
		if theirs := testkit.Run(t, perl, "-e", `print crypt($ARGV[0], $ARGV[1])`, password+"x", hash); theirs == hash {
			t.Errorf("%q: another password has the same hash", password)
		}
	}
}

// A salt of bytes that all differ, each of which counts.
func TestSalt(t *testing.T) {
	salt := []byte("0123456789abcdef")
	one, err := Hash([]byte("x"), bytes.NewReader(salt))
	if err != nil || answers.Hash(one) != nil || strings.Count(one, "$") != 4 || len(strings.Split(one, "$")[3]) != 22 {
		t.Errorf("%s, %v", one, err)
	}
	salt[15]++
	if two, err := Hash([]byte("x"), bytes.NewReader(salt)); err != nil || one == two {
		t.Errorf("%s with another salt, %v", two, err)
	}
}

func TestRefuses(t *testing.T) {
	if hash, err := Hash([]byte("a\tb"), rand.Reader); err == nil || hash != "" {
		t.Errorf("%q, %v", hash, err)
	}
	if hash, err := Hash([]byte("x"), io.LimitReader(rand.Reader, 15)); err == nil || hash != "" {
		t.Errorf("%q, %v", hash, err)
	}
}
