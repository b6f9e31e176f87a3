package scan

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"testing"
)

// libgcrypt's readable keys, with the secret number of an example or of another key.
func readableDSA(x string) string {
	return "(private-key (dsa  (p #9DB6FB5951B66BB6FE1E140F1D2CE5502374161FD6538DF1648218642F0B5C48#)  (q #F2C3119374CE76C9356990B465374A17#)  (x #" + x + "#)))"
}

func readableRSA(d string) string {
	return " (private-key  (rsa  (n #009F56231A3D82E3E7D613D59D53E9AB921BEF9F08A782AED0B6E46ADBC853EC      7C71C422435A3CD8FA0DB9EFD55CD329#)   (e #010001#)   (d #" + d + "#)))"
}

func readableECC(d string) string {
	return "(private-key (ecc  (curve secp256r1)  (d #" + d + "#)  (q #0460FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6#)))"
}

// published examples are silent where they are the secret themselves, and nowhere else.
func TestPublished(t *testing.T) {
	raw := make([]byte, 32)
	rand.Read(raw)
	fresh := base64.StdEncoding.EncodeToString(raw)
	number := fmt.Sprintf("%X", raw)
	const (
		aws    = "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
		akia   = "AKIAIOSFODNN7EXAMPLE"
		wg     = "PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
		netdev = "PrivateKey=EEGlnEPYJV//kbvvIqxKkQwOiS+UENyPncC4bF46ong="
		jwt    = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
	)
	dsa := readableDSA("69C7548C21D0DFEA6B9A51C9EAD4E27C33D3B3F180316E5BCAB92C933F0E4DBC")
	rsa := readableRSA("07EF82500C403899934FE993AC5A36F14FF2DF38CF1EF315F205EE4C83EDAA19       8890FC23DE9AA933CAFB37B6A8A8DBA6")
	ecc := readableECC("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721")
	ed := readableECC("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
	ed448 := readableECC("c4eab05d357007c632f3dbb48489924d552b08fe0c353a0d4a1f00acda2c463afbea67c5e8d2877c5e3bc397a659949ef8021e954e0a12274e")
	examples := []string{aws, akia, wg, netdev, jwt, dsa, rsa, ecc, ed, ed448}
	for _, c := range []struct{ rule, text string }{
		{ruleCloud, "aws_access_key_id = AKIA" + chance(t, 16, upper)},
		{ruleCloud, "aws_secret_access_key = " + chance(t, 40, alnum)},
		{ruleCloud, "token = eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI3NyIsImlhdCI6MTcxNjIzOTAyMn0." + chance(t, 43, alnum)},
		{ruleWireGuard, "PrivateKey = " + fresh},
		{ruleShadow, "root:$6$saltsalt$" + chance(t, 86, alnum) + ":20000:0:99999:7:::"},
		{ruleOpenPGP, readableDSA(number)},
		{ruleOpenPGP, readableRSA(number)},
		{ruleOpenPGP, readableECC(number)},
		// Of which an example is a part.
		{ruleCloud, "aws_session_token = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" + chance(t, 80, alnum)},
	} {
		for _, example := range examples {
			for _, text := range []string{c.text + "\n# as in " + example + "\n", "# not " + example + "\n" + c.text + "\n"} {
				if found := rulesIn(t, text); len(found) != 1 || found[0] != c.rule {
					t.Errorf("%q: found %v, want %s", text, found, c.rule)
				}
			}
		}
	}
	for _, example := range examples {
		if found := rulesIn(t, example+"\n"); len(found) > 0 {
			t.Errorf("%q: found %v", example, found)
		}
	}
}

// rulesIn returns the rules by which something is found in a text.
func rulesIn(t *testing.T, text string) (found []string) {
	t.Helper()
	s := New(nil)
	if err := s.Bytes(t.Context(), "/f", []byte(text)); err != nil {
		t.Fatal(err)
	}
	findings, _ := s.Findings()
	for _, f := range findings {
		found = append(found, f.Rule)
	}
	return found
}
