package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/keys"
	"halogenos.internal/builder/release"
	"halogenos.internal/uroot-cmds/ota/server"
)

const releaseSummary = `usage: halogen release --build DIR --server ROOT --key KEY|--gpg [OPTION]...
       halogen release --verify ROOT|URL [--pinned FILE] [--proxy URL] [--ca FILE]
       halogen release list | promote | withdraw | step | prune | refresh | archive ...

Publishes what 'halogen build' made in a static web server's directory:

  ROOT/<arch>/<image-id>/manifest.env            names the releases of the channels
  ROOT/<arch>/<image-id>/release-key.pgp         the release key
  ROOT/<arch>/<image-id>/<n>/<n>.tar.gz          the release, and .pgp its signature
  ROOT/<arch>/<image-id>/<n>/<n>.cdx.json        its bill of materials, likewise
  ROOT/<arch>/<image-id>/<n>/<n>.intoto.json     how it was made, likewise
  ROOT/<arch>/<image-id>/<n>/<n>.metainfo.xml    its --notes, likewise
  ROOT/<arch>/<image-id>/<n>/<n>.from-<m>.patch  --patch-from, and .patches what is in it
  ROOT/<arch>/<image-id>/stable, beta, alpha     links to the releases

Every file changes in one step and the manifest last. What machines would not
take is refused: another key or image, a version that is not newer, a lower
epoch. Publishing a release that is there to another channel only moves the
channel.

--notes names a file that says what the release brings, which 'ota check' and the
first login after the update show: AppStream metadata (.xml, <releases> or
<component>), or Markdown (.md), before whose text there may be lines "Urgency:
low|medium|high|critical", "Kind: security|feature", "Date: 2026-11-29", "URL: ..."
and "CVE: CVE-2026-1234, ...", and an empty line. Publishing the same release again
replaces its notes. Without --rollout it stays with the machines that it is for.

--patch-from names an older version on the server: its machines then fetch what has
changed within files instead of whole blocks, where that is less. It is about files
that lie in both images without compression, as kernel modules do with Modules=plain
in uki.conf, and may be given several times, also when the release is there already.

With --verify it checks a server as a machine would: a directory ROOT, or the URL
of one image, <base>/<arch>/<image-id>. --pinned is the key as installed machines
have it: a release that only a newer copy of it accepts is found. A proxy comes from
--proxy or the environment (https_proxy, http_proxy, no_proxy), the certificates of
authorities beside the system's from --ca; SSL_CERT_FILE names others in their place.

What is there already is changed by 'halogen release list', promote, withdraw, step,
prune and refresh, and published by hand after 'halogen release archive': each has
its --help.

The directory is uploaded with the manifest last, and what is old removed after that.
The links are made on the way, where the server can have any (-l):

  rsync -rtl --exclude '.*' --exclude 'manifest.env*' ROOT/ HOST:ROOT/
  rsync -rt --include '*/' --include manifest.env.pgp --exclude '*' ROOT/ HOST:ROOT/
  rsync -rt --include '*/' --include manifest.env --exclude '*' ROOT/ HOST:ROOT/
  rsync -rtl --delete --exclude '.*' ROOT/ HOST:ROOT/

The primary key never changes; all else of the key does ('halogen keys --help' says how):
build, release, --verify and keys check warn a year before it ends. A new signing
subkey signs from the second release on that has it in its certificate: the first
must be signed by the one that machines know. After a revocation the next release is
signed by another key that they know.

With --dbx, the release brings entries for dbx, the firmware's list of what may not
start; those that would stop the release itself are refused. Each machine adds them once
the release was blessed there, but for what would stop anything that it needs itself:
its fallback, its boot manager, the option ROM of a card. It asks for no recovery key.
What dbx has stays there: no release takes it back. The file is the list that UEFI gives out (https://github.com/microsoft/secureboot_objects has it as
DBXUpdate.bin), or a text with a SHA-256 Authenticode hash a line. Machines whose
release does not know of such entries refuse one that has any: publish a release
without, make it a step ('halogen release step'), and give the next one --dbx.

KEY is a secret OpenPGP key as 'halogen keys generate' makes it or 'gpg
--export-secret-keys' writes it, such as a container's secret. It is read where
it lies, and must pass 'halogen keys check'.

With --gpg, gpg signs instead, with a key of the pinned certificate that gpg-agent
has, on a smart card or a PKCS#11 token too. gpg knows an OpenPGP card's key after
'gpg --card-status'. A PKCS#11 token needs gnupg-pkcs11-scd, and on it an RSA key
of 3072 bits or more with an X.509 certificate of the same ID, which may be signed
by itself. Without pin-cache the token stays open until gpg-agent ends:

  ~/.gnupg/gpg-agent.conf          scdaemon-program /usr/bin/gnupg-pkcs11-scd
  ~/.gnupg/gnupg-pkcs11-scd.conf   providers token
                                   provider-token-library MODULE.so
                                   pin-cache 60

  gpg --card-status
  gpg-connect-agent 'SCD LEARN --force' /bye    KEYPAIRINFO has the keygrip
  gpg --expert --edit-key KEY addkey save       "Existing key", keygrip, sign only
  gpg --export KEY >release-key.pgp             for ReleaseKeyFile=

Put a subkey there and keep the primary key offline, with copies: machines never
take another one, and what a token has made dies with it.
`

const dbxUsage = "`FILE` with what shall not start any more: UEFI's list (DBXUpdate.bin), or a text with a SHA-256 Authenticode hash a line"

// releaseFlags are the options of release as they are given.
type releaseFlags struct {
	options            release.Options
	channel            string
	verify, pinned     string
	rollout            int
	expires            time.Duration
	expiresSet, shared bool
	json, agent        bool
	dbx                string
	reader             readerFlags
}

func (c command) release(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if _, ok := managed[args[0]]; ok {
			return c.manage(ctx, args[0], args[1:])
		}
		if args[0] == "archive" {
			return c.archive(ctx, args[1:])
		}
	}
	var r releaseFlags
	o := &r.options
	f := flag.NewFlagSet("release", flag.ContinueOnError)
	f.StringVar(&o.Build, "build", "", "`DIR` that 'halogen build' filled")
	f.StringVar(&o.Server, "server", "", "`ROOT` of the web server's directories; made when missing")
	f.StringVar(&r.channel, "channel", string(manifest.Stable), "`CHANNEL` that names the release: stable, beta or alpha")
	c.keyOptions(f, &o.Key, &r.agent)
	f.StringVar(&o.Previous, "previous", "", "`DIR` of the build that this one follows, for a ROOT that starts empty")
	f.StringVar(&o.Notes, "notes", "", "`FILE` that says what the release brings: AppStream metadata (.xml) or Markdown (.md)")
	f.Func("patch-from", "an older `VERSION` whose machines get patches; may be given several times", func(text string) error {
		v, err := contract.ParseVersion(text)
		if err == nil && slices.Contains(o.PatchFrom, v) {
			err = errors.New("it is named twice")
		}
		o.PatchFrom = append(o.PatchFrom, v)
		return err
	})
	f.StringVar(&r.dbx, "dbx", "", dbxUsage)
	f.IntVar(&r.rollout, "rollout", 100, "`PERCENT` of the machines that take the release")
	f.BoolVar(&o.SignManifest, "sign-manifest", false, "sign the manifest too, and number it, from now on")
	f.Var((*lifetime)(&r.expires), "expires", "how long machines may believe the manifest, a `DURATION` such as 30d or 720h; 0 for ever")
	f.StringVar(&r.verify, "verify", "", "check the server `ROOT|URL` instead")
	f.StringVar(&r.pinned, "pinned", "", "public key `FILE` that machines have pinned, for --verify")
	f.BoolVar(&r.json, "json", false, "print a summary in JSON on the standard output")
	r.reader.add(f)
	rest, err := c.parse(f, args, releaseSummary)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return c.misused(f, "unexpected argument %q", rest[0])
	}
	f.Visit(func(given *flag.Flag) {
		r.expiresSet = r.expiresSet || given.Name == "expires"
		r.shared = r.shared || given.Name == "rollout"
		verifies := slices.Contains([]string{"pinned", "proxy", "ca"}, given.Name)
		if verifies != (r.verify != "") && given.Name != "verify" && err == nil {
			err = c.misused(f, "--%s does not go with what else is asked for", given.Name)
		}
	})
	if err != nil {
		return err
	}
	progress := image.NewProgress(c.stderr)
	if r.verify != "" {
		return c.verifyServer(ctx, r, progress)
	}
	if o.Build == "" || o.Server == "" {
		return c.misused(f, "want --build and --server, or --verify")
	}
	if err := onThisMachine(o.Server); err != nil {
		return err
	}
	return c.publish(ctx, f, r, progress)
}

func (c command) publish(ctx context.Context, f *flag.FlagSet, r releaseFlags, progress *image.Progress) error {
	o := r.options
	var err error
	if o.Channel, err = manifest.ParseChannel(r.channel); err != nil {
		return c.misused(f, "--channel: %v", err)
	}
	if r.rollout < 0 || r.rollout > 100 {
		return c.misused(f, "--rollout %d is not a percentage, 0 to 100", r.rollout)
	}
	if r.expires < 0 {
		return c.misused(f, "--expires %s lies in the past", r.expires)
	}
	if o.KeepRollout = !r.shared; r.shared && r.rollout < 100 {
		o.Rollout = release.Rollout{Limited: true, Percent: r.rollout}
	}
	if o.Lifetime = r.expires; r.expiresSet && r.expires == 0 {
		o.Lifetime = -1
	}
	if o.Key.GPG && (o.Key.Path != "" || r.agent) {
		return c.misused(f, "--gpg stands in place of --key and its password")
	}
	if err := c.protect(); err != nil {
		return err
	}
	if r.dbx != "" {
		if o.Revocations, err = release.ReadRevocations(r.dbx); err != nil {
			return fmt.Errorf("--dbx %w", err)
		}
	}
	o.Key.Ask = func() (*keys.Password, error) { return c.ask(ctx, r.agent, "Password of "+o.Key.Path) }
	o.Now, o.Note = time.Now(), progress.Note
	result, err := release.Publish(ctx, o)
	if err != nil {
		return err
	}
	if r.json {
		return c.printJSON(result)
	}
	progress.Note("%s names release %s, in %s", o.Channel, result.Version, result.Directory)
	_, err = fmt.Fprintln(c.stdout, result.Archive)
	return err
}

// verifyServer checks every image of a directory, or the one of a URL.
func (c command) verifyServer(ctx context.Context, r releaseFlags, progress *image.Progress) error {
	o := release.VerifyOptions{Now: time.Now(), Note: progress.Note}
	if r.pinned != "" {
		text, err := os.ReadFile(r.pinned)
		if err != nil {
			return err
		}
		if o.Key, err = pgp.ParseKey(text); err != nil {
			return fmt.Errorf("%s: %w", r.pinned, err)
		}
	}
	reader, err := r.reader.options(func(text string) { progress.Note("%s", text) })
	if err != nil {
		return err
	}
	servers, err := servers(r.verify, reader)
	if err != nil {
		return err
	}
	var faults []error
	for _, s := range servers {
		if err := release.Verify(ctx, s, o); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", s, err))
		}
	}
	return errors.Join(faults...)
}

// onThisMachine refuses an address for a server's root: as a path, it would be a
// directory by that name.
func onThisMachine(server string) error {
	if !strings.Contains(server, "://") {
		return nil
	}
	return fmt.Errorf("--server %s: releases are published in a directory on this machine: name that, and copy it to the web server ('halogen release --help' has the order)", server)
}

func servers(place string, o server.Options) ([]release.Server, error) {
	scheme, _, isURL := strings.Cut(place, "://")
	if scheme = strings.ToLower(scheme); isURL && scheme == "file" {
		return nil, fmt.Errorf("%s: a directory is named by its path, without file://", place)
	} else if isURL && scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("%s: releases are read over http or https, as machines do, or from a directory: name the http address of it, or a copy on this machine", place)
	}
	if isURL {
		web, err := release.NewWeb(place, o)
		return []release.Server{web}, err
	}
	directories, err := release.Directories(place)
	if err != nil {
		return nil, err
	}
	var all []release.Server
	for _, f := range directories {
		all = append(all, f)
	}
	return all, nil
}
