package steps

import (
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/boot/answers"
)

// administrators are the groups whose members may become root, of which the first is
// taken that there is.
var administrators = []string{"sudo", "wheel"}

// people are groups that the first account of a machine belongs to, where the image has
// them: Debian's installer has the same (user-setup's passwd/user-default-groups).
var people = strings.Fields("audio cdrom dip floppy video plugdev netdev scanner bluetooth lpadmin")

// groups are those that an account belongs to, besides its own.
func groups(a *answers.Account, f *Facts) []string {
	var all []string
	has := func(g string) bool { return slices.Contains(f.Groups, g) }
	if i := slices.IndexFunc(administrators, has); a.Administers() && i >= 0 {
		all = append(all, administrators[i])
	}
	for _, g := range people {
		if has(g) {
			all = append(all, g)
		}
	}
	return all
}

// account makes an account with the image's own programs: they know its groups, its ranges
// for containers, its rules for passwords.
//
// useradd writes one file after the other, and the power may fail between them. So a note
// with the name of one that is new is there until the password is set, which comes last. Where a
// start finds the note and no password, it takes back what there is of the account, but
// for the home directory, and makes it again. Nobody has logged in to it.
func account(a *answers.Account, f *Facts) []Step {
	var all []Step
	user, there := f.user(a.Name)
	// After the first start an account of another name may be in use, with keys alone.
	if f.Begun != "" && (f.Begun == a.Name || f.First != "") {
		all = takeBack(f)
		there = there && (f.Begun != a.Name || user.Password)
	}
	if !there { // what was there is nothing to take back
		all = append(all, write(BegunFile, a.Name+"\n"))
	}
	join := strings.Join(groups(a, f), ",")
	switch {
	case there && join != "":
		all = append(all, Step{Kind: Run, Args: []string{"usermod", "--append", "--groups", join, a.Name}})
	case !there:
		all = append(all, add(a, f, join)...)
	}
	says := "the account " + a.Name + " is made"
	if there {
		says = "the account " + a.Name + ", which was there, has the new password"
	}
	// A password that was typed goes through PAM, which hashes it as the image has it.
	set := Step{Kind: Run, Args: []string{"chpasswd"}, Input: slices.Concat([]byte(a.Name+":"), a.Typed, []byte("\n")), Does: says}
	if a.PasswordHash != "" {
		set.Args = append(set.Args, "--encrypted")
		set.Input = []byte(a.Name + ":" + a.PasswordHash + "\n")
	}
	return append(all, set, Step{Kind: Remove, Path: BegunFile})
}

// noGroup is what groupdel(8) ends with where there is no such group.
const noGroup = 6

// takeBack removes what there is of an account that a run before began with. Whether
// userdel removes the group as well is for the image's login.defs(5) to say.
func takeBack(f *Facts) (all []Step) {
	user, there := f.user(f.Begun)
	if there && (!user.IsPerson() || user.Password) {
		return nil
	}
	if there {
		all = append(all, Step{Kind: Run, Args: []string{"userdel", f.Begun}})
	}
	if slices.Contains(f.Groups, f.Begun) {
		all = append(all, Step{Kind: Run, Args: []string{"groupdel", f.Begun}, Fine: noGroup})
	}
	return all
}

// Unlock removes the locks that useradd and its like leave where the power fails. They take
// one for stale only where no process has its number, and at the next start some has. It is
// for a first start alone: nobody else is at work on accounts then.
func Unlock(f *Facts) (all []Step) {
	if f.Begun == "" {
		return nil
	}
	for _, name := range []string{"passwd", "shadow", "group", "gshadow", "subuid", "subgid"} {
		all = append(all, Step{Kind: Remove, Path: "/etc/" + name + ".lock"})
	}
	return all
}

// Settle is for a first start at which somebody has an account with a password: nothing is
// asked, and what a run before began with and did not end goes.
func Settle(f *Facts) []Step {
	var all []Step
	if f.Begun != "" {
		all = append(takeBack(f), Step{Kind: Remove, Path: BegunFile})
	}
	return append(all, Done()...)
}

// add makes an account. A home directory that is there (`reset --keep-home`, or a run that
// was cut) stays, and its owner's number is the account's.
func add(a *answers.Account, f *Facts, join string) []Step {
	args := []string{"useradd", "--create-home", "--user-group", "--comment", a.FullName}
	if shell := shell(f); shell != "" {
		args = append(args, "--shell", shell)
	}
	if join != "" {
		args = append(args, "--groups", join)
	}
	// Ranges for containers that userdel had not come to, as the power failed, stay.
	if _, there := f.user(a.Name); !there {
		for _, r := range [][2]string{{subuid, "SUB_UID_COUNT=0"}, {subgid, "SUB_GID_COUNT=0"}} {
			if strings.Contains("\n"+f.Files[r[0]], "\n"+a.Name+":") {
				args = append(args, "--key", r[1])
			}
		}
	}
	owner, kept := f.Homes[a.Name]
	var all []Step
	if kept && owner == 0 {
		// useradd had made it and not given it away: it is empty, or else this fails.
		all = append(all, Step{Kind: Remove, Path: "/home/" + a.Name})
	}
	taken := slices.ContainsFunc(f.Users, func(u User) bool { return u.UID == owner && u.Name != a.Name })
	if kept && !taken && (User{UID: owner}).IsPerson() {
		args = append(args, "--uid", strconv.FormatUint(uint64(owner), 10))
	}
	return append(all, Step{Kind: Run, Args: append(args, a.Name)})
}

// shell is that of people; "" is what useradd takes by itself, which is Debian's /bin/sh.
func shell(f *Facts) string {
	if f.Tools["bash"] {
		return "/bin/bash"
	}
	return ""
}
