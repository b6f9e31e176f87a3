package scan

import (
	"bytes"
	"path"
	"strings"
)

// emptyPasswords finds the accounts of a file of shadow(5) or passwd(5) that anybody
// may log in to: PAM's pam_unix takes an empty field for an empty password where it
// is told "nullok", as most distributions tell it, and login(1) without PAM always.
// A field such as '*' or '!' lets nobody in, and 'x' in passwd refers to shadow.
// Each line counts by itself, as for the programs that read them.
func emptyPasswords(name string, data []byte, found func(at int)) {
	fields := accountFields(name)
	if fields == 0 {
		return
	}
	at := 0
	for line := range bytes.Lines(data) {
		start := at
		at += len(line)
		field := strings.Split(string(bytes.TrimRight(line, "\r\n")), ":")
		if len(field) < fields || field[0] == "" || field[1] != "" || strings.ContainsAny(field[0][:1], "#+-") { // '+', '-': of NIS (nsswitch.conf(5), compat)
			continue
		}
		if fields == passwdFields && len(field) > shellField && !loginShell(field[shellField]) {
			continue
		}
		found(start)
	}
}

// Fields that a line has at the least: programs read one that has lost the others, too.
const (
	passwdFields = 4
	shadowFields = 2
	shellField   = 6 // of passwd, if it is there
)

// accountFields returns how many fields a line of a file has at the least; 0 for a
// file of another kind. Names of files tell: the same text elsewhere is an example. A copy
// counts as the file ("shadow-", systemd's factory), since a restore makes it one.
func accountFields(name string) int {
	if i := strings.LastIndexByte(name, '!'); i >= 0 { // in an archive
		name = name[i+1:]
	}
	dir, base := path.Split("/" + name)
	if !strings.HasSuffix(dir, "/etc/") && !strings.HasSuffix(dir, "/usr/lib/") { // nss-altfiles reads the latter
		return 0
	}
	switch strings.TrimSuffix(base, "-") {
	case "passwd":
		return passwdFields
	case "shadow":
		return shadowFields
	}
	return 0
}

// loginShell reports whether an account's shell lets it in; none stands for /bin/sh.
func loginShell(shell string) bool {
	switch path.Base(shell) {
	case "nologin", "false", "true", "sync", "halt", "shutdown":
		return false
	}
	return true
}
