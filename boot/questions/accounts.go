package questions

import (
	"slices"
	"strconv"
	"strings"
)

// A User is an account.
type User struct {
	Name string
	UID  uint32
	// Password: somebody can log in with one.
	Password bool
}

// Accounts of people have these numbers, as useradd(8) and systemd have it.
const (
	FirstPerson = 1000
	LastPerson  = 59999
)

// IsPerson reports whether an account is that of a person.
func (u User) IsPerson() bool { return u.UID >= FirstPerson && u.UID <= LastPerson }

// LivedIn reports whether there is a person's account with a password: nobody is asked then.
func LivedIn(users []User) bool {
	return slices.ContainsFunc(users, func(u User) bool { return u.IsPerson() && u.Password })
}

// SetUsers says who there is.
func (c *Choices) SetUsers(users []User) {
	for _, u := range users {
		if u.IsPerson() {
			c.People = append(c.People, u.Name)
		} else {
			c.Users = append(c.Users, u.Name)
		}
	}
}

// Accounts reads the users and groups of passwd(5), shadow(5) and group(5).
func Accounts(passwd, shadow, group string) (users []User, groups []string) {
	passwords := map[string]string{}
	for line := range strings.Lines(shadow) {
		c := strings.Split(line, ":")
		if len(c) > 1 {
			passwords[c[0]] = c[1]
		}
	}
	for line := range strings.Lines(passwd) {
		c := strings.Split(line, ":")
		if len(c) < 3 {
			continue
		}
		n, err := strconv.ParseUint(c[2], 10, 32)
		if err != nil {
			continue
		}
		hash := c[1]
		if hash == "x" {
			hash = passwords[c[0]]
		}
		users = append(users, User{Name: c[0], UID: uint32(n), Password: opens(hash)})
	}
	for line := range strings.Lines(group) {
		name, _, _ := strings.Cut(line, ":")
		groups = append(groups, name)
	}
	return users, groups
}

// opens reports whether some password fits a field of /etc/shadow: one that begins with an
// exclamation mark or an asterisk, or is empty, is of an account that is locked or new.
func opens(hash string) bool { return hash != "" && !strings.ContainsAny(hash[:1], "!*") }

// Assignment is the key and the value of a line KEY=VALUE of a file like os-release(5); "" for
// any other line.
func Assignment(line string) (key, value string) {
	key, value, found := strings.Cut(strings.TrimSpace(line), "=")
	if !found || strings.HasPrefix(key, "#") || strings.ContainsAny(key, " \t") {
		return "", ""
	}
	return key, strings.Trim(strings.TrimSpace(value), `"'`)
}

// Value is the value of a key in a file of such lines, the last of them.
func Value(text, key string) (value string) {
	for line := range strings.Lines(text) {
		if k, v := Assignment(line); k == key {
			value = v
		}
	}
	return value
}
