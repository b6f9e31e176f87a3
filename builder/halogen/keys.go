package main

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"halogenos.internal/boot/secretmem"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/keys"
	"halogenos.internal/builder/release"
)

const keysSummary = `usage: halogen keys generate --out DIR --name NAME [OPTION]...
       halogen keys check [OPTION]... KEY

generate makes what a distributor signs with, in DIR:

  release-key.secret.asc   OpenPGP: an Ed25519 key that certifies, a subkey that signs
  release-key.asc          its public part, for ReleaseKeyFile= in uki.conf
  module-key.pem           the key for kernel modules, PKCS#8
  module-key.crt           its certificate, for ModuleKey= in uki.conf and the kernel

Both secret files are encrypted with one password. Nothing is overwritten: an
image's release key can never be replaced.

check says whether a secret key, OpenPGP or PKCS#8, is kept as it must be: with a
password that cannot be guessed, on storage that is encrypted (dm-crypt, fscrypt,
eCryptfs) or in memory (tmpfs, where swap space is encrypted or there is none),
readable by its owner alone. It fails when a rule is broken.

A release key lasts as long as the image. Its primary key is what machines have pinned
and never changes; the rest does, with FPR for its fingerprint and SUB for a subkey's:

  renew it     gpg --quick-set-expire FPR 5y; gpg --quick-set-expire FPR 5y '*'
               before it ends or after; warnings come a year before
  add a subkey gpg --quick-add-key FPR ed25519 sign 5y
               it signs from the second release on that has it
  revoke one   gpg --edit-key FPR; there: key N, revkey, save
               what it has signed is taken by nobody any more who learns of it: publish a
               newer release at once, which another key signs that machines know

After each of them:

  gpg --export FPR >release-key.asc                 the file of ReleaseKeyFile=
  halogen release refresh --server ROOT --public release-key.asc   (with --key KEY where the
                                                    manifest is signed)
  gpg --export-secret-keys --armor FPR >KEY         for --key, unless gpg signs (--gpg)

Machines learn it from the server at their next check, and later images say it too. A
machine that slept meanwhile learns all of it at once. One that must take a certain
release before newer ones finds it by 'halogen release step'.

The password comes from a file, such as a container's secret, from gpg-agent, or
from the terminal.
`

// storageRisk says what the option of that name endangers.
const storageRisk = "take a key that lies on storage which is not encrypted: anyone who gets the disk, a copy or a backup of it, " +
	"now or when it is thrown away, has only to guess the password to sign what every machine obeys; for CI, whose disks last as long as a job"

// keyFlags are the options of keys as they are given.
type keyFlags struct {
	dir, name, email, password string
	agent, unencrypted, json   bool
}

func (c command) keys(ctx context.Context, args []string) error {
	var k keyFlags
	f := flag.NewFlagSet("keys", flag.ContinueOnError)
	f.StringVar(&k.dir, "out", "", "`DIR` for the keys; made when missing")
	f.StringVar(&k.name, "name", "", "`NAME` of the distributor, in the keys")
	f.StringVar(&k.email, "email", "", "`ADDRESS` of the distributor, in the release key")
	f.StringVar(&k.password, "password-file", "", "`FILE` whose first line is the password")
	f.BoolVar(&k.agent, "agent", false, "get the password from gpg-agent")
	f.BoolVar(&k.unencrypted, "allow-unencrypted-storage", false, storageRisk)
	f.BoolVar(&k.json, "json", false, "print the result in JSON on the standard output")
	rest, err := c.parse(f, args, keysSummary)
	if err != nil {
		return err
	}
	if err := c.protect(); err != nil {
		return err
	}
	switch {
	case len(rest) == 1 && rest[0] == "generate":
		if k.dir == "" || k.name == "" {
			return c.misused(f, "generate wants --out and --name")
		}
		return c.generateKeys(ctx, k)
	case len(rest) == 2 && rest[0] == "check":
		if k.dir != "" || k.name != "" || k.email != "" {
			return c.misused(f, "check makes no keys: --out, --name and --email do not go with it")
		}
		return c.checkKey(ctx, k, rest[1])
	}
	return c.misused(f, "want generate, or check and a KEY")
}

// protect guards the memory of this process before a key is read.
func (c command) protect() error {
	if !secretmem.Enabled() {
		image.NewProgress(c.stderr).Note("WARNING: this halogen was built without GOEXPERIMENT=runtimesecret: until it ends, copies of keys and passwords stay in its memory (`make build` sets it)")
	}
	return keys.Protect()
}

// password gets a password from where the options say; from the terminal if
// they say nothing.
func (c command) password(ctx context.Context, k keyFlags, question string) (*keys.Password, error) {
	if k.password == "" {
		return c.ask(ctx, k.agent, question)
	}
	r, err := keys.CheckPlace(k.password)
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	if err := r.Err(excused(k.unencrypted)...); err != nil {
		return nil, err
	}
	return keys.ReadPassword(k.password)
}

func excused(unencrypted bool) []string {
	if unencrypted {
		return []string{keys.RuleStorage}
	}
	return nil
}

// ask gets a password from a person, by way of gpg-agent or of the terminal.
func (c command) ask(ctx context.Context, agent bool, question string) (*keys.Password, error) {
	if agent {
		return keys.AgentPassword(ctx, "halogen:key", question)
	}
	return keys.AskPassword(os.Stdin, c.stderr, question)
}

func (c command) generateKeys(ctx context.Context, k keyFlags) (err error) {
	password, err := c.password(ctx, k, "Password of the new keys")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, password.Wipe()) }()
	if k.password == "" && !k.agent {
		again, err := c.password(ctx, k, "Again")
		if err != nil {
			return err
		}
		same := bytes.Equal(again.Bytes(), password.Bytes())
		if err := again.Wipe(); err != nil {
			return err
		}
		if !same {
			return errors.New("the two passwords differ")
		}
	}
	made, err := keys.Generate(keys.Wanted{
		Dir: k.dir, Name: k.name, Email: k.email, Password: password, Now: time.Now(), UnencryptedStorage: k.unencrypted,
	})
	if err != nil {
		return err
	}
	if k.json {
		return c.printJSON(made)
	}
	for _, file := range made.Files {
		fmt.Fprintln(c.stdout, file)
	}
	_, err = fmt.Fprintf(c.stdout, "\nFor uki.conf:\n[Image]\nReleaseKey=%s\nReleaseKeyFile=%s\nModuleKey=%s\n", made.Fingerprint, keys.ReleasePublic, keys.ModulePublic)
	return err
}

func (c command) checkKey(ctx context.Context, k keyFlags, path string) (err error) {
	var password *keys.Password
	if k.password != "" || k.agent {
		if password, err = c.password(ctx, k, "Password of "+path); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, password.Wipe()) }()
	}
	r, err := keys.Check(path, password, time.Now())
	if err != nil {
		return err
	}
	if k.json {
		if err := c.printJSON(r); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(c.stdout, "%s: %s %s\n", r.Path, r.Kind, r.Name)
		for _, v := range r.Verdicts {
			word := "good"
			if !v.OK {
				word = "BROKEN"
			}
			fmt.Fprintf(c.stdout, "  %-12s %-7s %s\n", v.Rule, word, v.Says)
		}
	}
	if text := release.KeyWarning(path, time.Now()); text != "" {
		fmt.Fprintf(c.stderr, "WARNING: %s\n", text)
	}
	return r.Err(excused(k.unencrypted)...)
}

// loadModuleKey reads the key that signs kernel modules, if it is kept as it
// must be.
func (c command) loadModuleKey(ctx context.Context, b buildFlags) (key crypto.Signer, wipe func(), err error) {
	if err := c.protect(); err != nil {
		return nil, nil, err
	}
	k := keyFlags{password: b.modulePassword, agent: b.agent, unencrypted: b.unencrypted}
	password, err := c.password(ctx, k, "Password of "+b.moduleKey)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, password.Wipe()) }()
	r, err := keys.Check(b.moduleKey, password, time.Now())
	if err != nil {
		return nil, nil, err
	}
	if err := r.Err(excused(b.unencrypted)...); err != nil {
		return nil, nil, err
	}
	if b.unencrypted {
		image.NewProgress(c.stderr).Note("WARNING: %s may lie on storage that is not encrypted", b.moduleKey)
	}
	return keys.LoadModuleKey(b.moduleKey, password)
}
