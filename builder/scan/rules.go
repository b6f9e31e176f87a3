package scan

import (
	"regexp"
	"slices"
	"strings"
)

// A Rule is a kind of secret that the scan knows.
type Rule struct {
	Name string // as an [Allow] section names it
	What string // what it finds
}

// A check judges what an anchor was found in. It returns where the secret
// starts.
type check func(data []byte, at int) (start int, ok bool)

// A rule looks for fixed bytes and then closely at what is around them. One
// without a check is for texts with escapes.
type rule struct {
	name    string
	anchors []string // each has at least block bytes
	check   check
}

// Names of rules that several places of this package use.
const (
	rulePEM        = "private-key-pem"
	ruleDER        = "private-key-der"
	ruleSSH        = "private-key-ssh"
	ruleOpenPGP    = "private-key-openpgp"
	ruleAge        = "private-key-age"
	ruleOther      = "private-key-other"
	ruleJWK        = "private-key-jwk"
	ruleStore      = "key-store"
	ruleLUKS       = "luks-header"
	ruleKeyFile    = "key-file"
	ruleShadow     = "password-hash"
	ruleEmpty      = "empty-password"
	ruleMachineID  = "machine-id"
	ruleWireGuard  = "wireguard-key"
	ruleWiFi       = "network-secret"
	ruleLogin      = "login"
	ruleCloud      = "cloud-token"
	ruleUnsearched = "unsearched"
)

// Rules lists what is looked for.
func Rules() []Rule {
	return []Rule{
		{rulePEM, "private keys in PEM, plain or encrypted, also within JSON or Base64"},
		{ruleDER, "private keys in DER: PKCS#1, PKCS#8, SEC1, DSA, encrypted PKCS#8"},
		{ruleSSH, "private SSH keys, those of hosts included: OpenSSH, SSH 1, PuTTY"},
		{ruleOpenPGP, "secret OpenPGP keys, armored, binary or as gpg-agent keeps them"},
		{ruleAge, "age identities"},
		{ruleOther, "minisign, signify, DNSSEC, TSIG, Tor, OpenVPN, Matrix, Tailscale, Nostr and BIP 32 keys, key blobs of Windows, keys printed or in XML"},
		{ruleJWK, "private and symmetric JSON web keys"},
		{ruleStore, "stores of keys: PKCS#12, Java, NSS, GNOME keyring, KeePass, Kerberos keytab, Samba, Ethereum"},
		{ruleLUKS, "LUKS headers, which hold keys of a volume"},
		{ruleKeyFile, "files of random bytes in the size of a key, or the same as hexadecimal or Base64"},
		{ruleShadow, "hashes of passwords: crypt, LDAP, GRUB"},
		{ruleEmpty, "accounts that need no password: an empty one in /etc/shadow, or in /etc/passwd with a shell"},
		{ruleMachineID, "the ID of one machine"},
		{ruleWireGuard, "private and preshared WireGuard keys"},
		{ruleWiFi, "secrets of NetworkManager, wpa_supplicant, iwd, hostapd and IPsec"},
		{ruleLogin, "names with passwords: .netrc, .git-credentials, Docker logins"},
		{ruleCloud, "tokens of AWS, Google, Azure, GitHub, GitLab, Slack and others"},
		{ruleUnsearched, "what could not be searched: encrypted, of an unknown format, nested too deep or too large"},
	}
}

// named makes a check of a regular expression that must match from the anchor
// on, within limit bytes.
func named(expression string, limit int) check {
	re := regexp.MustCompile(`\A(?:` + expression + `)`)
	return func(data []byte, at int) (int, bool) { return at, re.Match(data[at:min(len(data), at+limit)]) }
}

// matched makes the same for what is a word of its own: it does not go on to
// the left.
func matched(expression string, limit int) check {
	after := named(expression, limit)
	return func(data []byte, at int) (int, bool) {
		if at > 0 && wordByte(data[at-1]) {
			return 0, false
		}
		return after(data, at)
	}
}

// keyLine makes a check of a `key = value` whose key is the anchor and starts
// a line.
func keyLine(expression string, limit int) check {
	after := matched(expression, limit)
	return func(data []byte, at int) (int, bool) {
		for i := at - 1; i >= 0 && data[i] != '\n'; i-- {
			if data[i] != ' ' && data[i] != '\t' {
				return 0, false
			}
		}
		return after(data, at)
	}
}

// behind makes a check that starts n bytes after the anchor does.
func behind(n int, c check) check {
	return func(data []byte, at int) (int, bool) { return c(data, at+n) }
}

func wordByte(b byte) bool {
	return b == '_' || b == '-' || '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

const (
	b64     = `[A-Za-z0-9+/]`
	b64url  = `[A-Za-z0-9_-]`
	b64of32 = b64 + `{42}[AEIMQUYcgkosw048]=`
	end     = `(?:[^A-Za-z0-9_-]|\z)`
)

// awsSecretName is what is before a secret of AWS.
const awsSecretName = `(?i:aws_(?:secret_access_key|session_token)|SecretAccessKey)["']?\s*[:=]\s*["']?`

// rules returns all rules with anchors.
func rules() []rule {
	all := []rule{
		{ruleAge, []string{"AGE-SECRET-KEY-"}, matched(`AGE-SECRET-KEY-[A-Z0-9-]{40}`, 128)},
		{ruleSSH, []string{"PuTTY-User-Key-File-"}, matched(`(?s)PuTTY-User-Key-File-[0-9]: .*?\nPrivate-Lines: [0-9]`, 8192)},
		{ruleSSH, []string{"SSH PRIVATE KEY FILE FORMAT 1."}, matched(`SSH PRIVATE KEY FILE FORMAT 1\.1\n\x00`, 64)},
		{ruleSSH, []string{"openssh-key-v1\x00"}, opensshBinary},
		{ruleSSH, []string{"ssh-rsa\x00\x00", "ssh-dss\x00\x00", "ssh-ed25519\x00\x00\x00\x40", "ecdsa-sha2-nistp"}, dropbear},
		{ruleOther, []string{"\x1e\xf1\xb5\xb0\x00\x00\x00\x00"}, pvk},
		{ruleOther, []string{"RSA2", "RSA3", "DSS2", "ECS2", "ECS4", "ECS6", "ECK2", "ECK4", "ECK6"}, windowsBlob},
		{ruleOther, []string{"<RSAKeyValue>", "<DSAKeyValue>"}, xmlKey},
		{ruleOther, []string{"privateExponent:", "private exponent:", "private key:\n", "priv:\n"}, named(`(?:private ?[eE]xponent|priv|private key):\s+(?:[0-9a-f]{2}:){8}`, 128)},
		{ruleOther, []string{"ed25519 "}, keyLine(`ed25519 [A-Za-z0-9_]{1,64} `+b64+`{43}(?:\s|\z)`, 160)},
		{ruleOther, []string{"\x05\x84\x69\xda\xf6\xf5\x43\x24\x80\x05\x49\xda\x0f\x8e\xa2\xfb\x20\x00\x00\x00\x01\x00\x00\x00"}, anywhere}, // systemd-creds --with-key=null
		{ruleOther, []string{"privkey:"}, matched(`privkey:[0-9a-f]{64}`, 96)},
		{ruleOther, []string{"xprv", "yprv", "zprv", "tprv", "uprv", "vprv"}, base58Key},
		{ruleOther, []string{"nsec1"}, bech32Key},
		{ruleStore, []string{"kdfparams", "KdfParams"}, ethereum},
		{ruleStore, []string{"TDB file\n"}, sambaStore},
		{rulePEM, []string{"PRIVATE KEY"}, pemOther},
		{ruleSSH, []string{"OPENSSH PRIVATE KEY"}, behind(len("OPENSSH "), pem)},
		{ruleOpenPGP, []string{"PGP PRIVATE KEY"}, behind(len("PGP "), pem)},
		{ruleDER, []string{"\x02\x01\x00\x30", "\x02\x01\x01\x30"}, derPKCS8},
		{ruleDER, []string{"\x02\x01\x00\x02"}, derPKCS1},
		{ruleDER, []string{"\x02\x01\x01\x04"}, derSEC1},
		{ruleDER, []string{"\x2a\x86\x48\x86\xf7\x0d\x01\x05", "\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01"}, encryptedPKCS8},
		{ruleStore, []string{"\x02\x01\x03\x30"}, derPKCS12},
		{ruleStore, []string{"\xfe\xed\xfe\xed\x00\x00\x00", "\xce\xce\xce\xce\x00\x00\x00"}, javaStore},
		{ruleStore, []string{"GnomeKeyring\n\r\x00\n"}, gnomeKeyring},
		{ruleStore, []string{"\x03\xd9\xa2\x9a\x67\xfb\x4b\xb5"}, atStart},
		{ruleStore, []string{"nssPrivate"}, nssStore},
		{ruleLUKS, []string{"LUKS\xba\xbe\x00", "SKUL\xba\xbe\x00"}, luksHeader},
		{ruleOpenPGP, []string{"-private-key", "(private-key", ":private-key"}, agentKey},
		{ruleJWK, []string{`"kty"`}, jwk},
		{ruleMachineID, []string{"MACHINE_ID="}, keyLine(`MACHINE_ID="?[0-9a-f]{32}"?\s`, 64)},
	}
	escapes := rule{anchors: escapeAnchors}
	return slices.Concat(all, textRules(), tokenRules(), []rule{escapes})
}

// textRules find secrets in configuration files.
func textRules() []rule {
	crypt := []string{"$1$", "$2a$", "$2b$", "$2y$", "$5$", "$6$", "$7$", "$y$", "$gy$", "$apr1$", "$sha1$"}
	var hashes []string
	for _, before := range []string{":", " ", "=", `"`, "'", "\n", "!"} {
		for _, id := range crypt {
			hashes = append(hashes, before+id)
		}
	}
	return []rule{
		{ruleShadow, hashes, cryptHash},
		{ruleShadow, []string{"{SSHA", "{CRYPT}", "{SMD5}"}, matched(`\{(?:SSHA(?:256|512)?|SMD5|CRYPT)\}[A-Za-z0-9+/$.]{20}`, 64)},
		{ruleShadow, []string{"grub.pbkdf2.sha512."}, matched(`grub\.pbkdf2\.sha512\.[0-9]+\.[0-9A-Fa-f]{64}`, 256)},
		{ruleOther, []string{"secret key\n"}, signifyKey},
		{ruleOther, []string{"Private-key-format: v1."}, matched(`(?s)Private-key-format: v1\..*?\n(?:PrivateKey|Key|Modulus): `+b64+`{8}`, 1024)},
		{ruleOther, []string{`secret "`}, matched(`secret "`+b64+`{16,}={0,2}"\s*;`, 256)},
		{ruleOther, []string{"== ed25519v1-secret: "}, anywhere},
		{ruleOther, []string{"OpenVPN Static key V1", "OpenVPN tls-crypt-v2"}, openVPN},
		{ruleWireGuard, []string{"PrivateKey", "PresharedKey", "PreSharedKey", "private-key", "preshared-key", "private_key", "preshared_key", "privateKey", "presharedKey", "preSharedKey", "PRIVATE_KEY", "PRESHARED_KEY"}, wireGuardKey},
		{ruleWireGuard, []string{"private_key=", "preshared_key="}, keyLine(`(?:private|preshared)_key=[0-9a-f]{64}\s`, 96)},
		{ruleWiFi, []string{"psk="}, unlessShown(keyLine(`psk=(?:[0-9a-f]{64}|"[^"\n]{8,63}"|[^\s"<$%{][^\n]{7,62})[ \t]*(?:\r?\n|\z)`, 128))},
		{ruleWiFi, []string{"wpa_passphrase="}, keyLine(`wpa_passphrase=\S{8}`, 96)},
		{ruleWiFi, []string{"PreSharedKey="}, keyLine(`PreSharedKey=[0-9a-f]{64}`, 96)},
		{ruleWiFi, []string{"Passphrase="}, keyLine(`Passphrase=[^\s<$%{][^\n]{7,62}(?:\n|\z)`, 96)},
		{ruleWiFi, []string{": PSK "}, matched(`: PSK (?:"[^"\n]{4,}"|0s`+b64+`{8,}|0x[0-9a-fA-F]{16,})`, 160)},
		{ruleLogin, []string{"machine "}, netrc},
		{ruleLogin, []string{`"auth"`}, dockerAuth},
	}
}

// tokenRules find credentials that say by themselves what they are for.
func tokenRules() []rule {
	all := []rule{
		{ruleCloud, []string{"aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "aws_session_token", "SecretAccessKey", "secretAccessKey"},
			named(awsSecretName+b64+`{40}`, 128)},
		{ruleCloud, []string{"client_secret", "clientSecret", "CLIENT_SECRET"},
			named(`(?i:client_?secret)["']?\s*[:=]\s*["']?[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31}`, 128)},
		{ruleCloud, []string{"AccountKey=", "SharedAccessKey="}, matched(`(?:AccountKey|SharedAccessKey)=`+b64+`{40}`, 128)},
		{ruleCloud, []string{"hooks.slack.com/"}, matched(`hooks\.slack\.com/(?:services|workflows)/T[A-Z0-9]{6,}/[A-Z0-9]{6,}/[A-Za-z0-9]{16}`, 160)},
		{ruleCloud, []string{"discord.com/api/webhooks/"}, matched(`discord\.com/api/webhooks/[0-9]{15,}/`+b64url+`{40}`, 160)},
		// SG. alone is shorter than a block.
		{ruleCloud, []string{"=SG.", " SG.", `"SG.`, "'SG.", ":SG.", "\nSG."}, behind(1, matched(`SG\.`+b64url+`{22}\.`+b64url+`{43}`, 96))},
		{ruleCloud, []string{"eyJh", "eyJ0", "eyJr"}, webToken},
	}
	for anchor, expression := range map[string]string{
		"AKIA":         `AKIA[A-Z2-7]{16}` + end,
		"ASIA":         `ASIA[A-Z2-7]{16}` + end,
		"AIza":         `AIza` + b64url + `{35}` + end,
		"ya29.":        `ya29\.` + b64url + `{40}`,
		"GOCSPX-":      `GOCSPX-` + b64url + `{24}`,
		"ghp_":         `ghp_[A-Za-z0-9]{36}` + end,
		"gho_":         `gho_[A-Za-z0-9]{36}` + end,
		"ghu_":         `ghu_[A-Za-z0-9]{36}` + end,
		"ghs_":         `ghs_[A-Za-z0-9]{36}` + end,
		"ghr_":         `ghr_[A-Za-z0-9]{36}` + end,
		"github_pat_":  `github_pat_[A-Za-z0-9_]{60}`,
		"glpat-":       `glpat-` + b64url + `{20}`,
		"xoxb-":        `xoxb-[0-9A-Za-z-]{20}`,
		"xoxp-":        `xoxp-[0-9A-Za-z-]{20}`,
		"xoxa-":        `xoxa-[0-9A-Za-z-]{20}`,
		"xoxr-":        `xoxr-[0-9A-Za-z-]{20}`,
		"xapp-":        `xapp-[0-9]-[A-Z0-9]{8,}-[0-9]{8,}-[0-9a-f]{32}`,
		"npm_":         `npm_[A-Za-z0-9]{36}` + end,
		"pypi-AgE":     `pypi-AgE` + b64url + `{40}`,
		"dop_v1_":      `dop_v1_[0-9a-f]{64}`,
		"hvs.":         `hvs\.` + b64url + `{24}`,
		"sk_live_":     `sk_live_[A-Za-z0-9]{24}`,
		"rk_live_":     `rk_live_[A-Za-z0-9]{24}`,
		"sk-ant-":      `sk-ant-` + b64url + `{32}`,
		"sk-proj-":     `sk-proj-` + b64url + `{32}`,
		"tskey-":       `tskey-(?:auth|api|client)-[A-Za-z0-9-]{20}`,
		"dckr_pat_":    `dckr_pat_` + b64url + `{24}`,
		"shpat_":       `shpat_[0-9a-fA-F]{32}`,
		"PMAK-":        `PMAK-[0-9a-f]{24}-[0-9a-f]{34}`,
		"atlasv1.":     `atlasv1\.` + b64url + `{40}`,
		"AKCp":         `AKCp[A-Za-z0-9]{60}`,
		"EAACEdEose0c": `EAACEdEose0c[A-Za-z0-9]{20}`,
	} {
		all = append(all, rule{ruleCloud, []string{anchor}, matched(expression, 256)})
	}
	slices.SortFunc(all, func(a, b rule) int { return strings.Compare(a.anchors[0], b.anchors[0]) })
	return all
}
