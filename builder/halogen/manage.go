package main

import (
	"context"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/keys"
	"halogenos.internal/builder/release"
	"halogenos.internal/builder/reports"
)

const manageSummary = `usage: halogen release list ROOT|URL [--json] [--proxy URL] [--ca FILE]
       halogen release promote VERSION --server ROOT [--channel CHANNEL] [--rollout PERCENT]
       halogen release rollout --server ROOT --reports DIR [--waves LIST] [--limit PERCENT] [--least N]
                               [--every DURATION]
       halogen release withdraw VERSION --server ROOT [--to VERSION]
       halogen release step VERSION --server ROOT [--remove]
       halogen release prune --server ROOT [--keep N] [--dry-run]
       halogen release refresh --server ROOT [--expires DURATION] [--public FILE] [--sign-manifest]

Changes what a server offers without publishing a release. Each command does all of
it or nothing, the manifest last, and refuses what would leave machines without a
release that they take. A key (--key or --gpg) is needed only where the manifest is
signed.

  list      the releases that are there, newest first, and what is wrong with them
  promote   a channel names a release that is there already
  rollout   the release that a channel names goes to the next wave of the machines where
            enough of them have told that they keep it, or to no more of them where too
            many have failed ('halogen reports'). For a cron line: a wave a call, once
            it has lasted --every and by the reports since it began (rollout.json
            beside the manifest) of the machines that follow the channel.
            Reports are signed by nobody: who can write to DIR's server can have a
            release stopped, or hide that it fails with reports of machines that keep it
  withdraw  no channel names the release any more, but the one before it that was
            not withdrawn itself; machines that have it keep it until a newer one
            comes, so the manifest lists it (WITHDRAWN_STABLE=...) and what is
            published next must be newer
  step      machines with older releases take this one before anything newer, and
            restart into it: for a release without which they could not read, check or
            start what follows. It stays on the server until --remove
  prune     old releases that no channel names and that are no step are removed
  refresh   the manifest is renewed: its end, its number, its signature; with
            --public, the release key that the server shows learns what FILE says
            (gpg --export): a later expiry, a new subkey. Machines learn it from there
`

// manageFlags are the options of these commands as they are given.
type manageFlags struct {
	server, image, channel, to, public string
	reports, waves                     string
	limit, least                       int
	key                                release.KeyFile
	agent, dry, sign, json, remove     bool
	rollout, keep                      int
	expires, every                     time.Duration
	given                              map[string]bool
	reader                             readerFlags
}

// managed are the options of each command.
var managed = map[string][]string{
	"list":     {"json", "proxy", "ca"},
	"promote":  {"channel", "rollout"},
	"rollout":  {"channel", "reports", "waves", "limit", "least", "every"},
	"withdraw": {"to"},
	"step":     {"remove"},
	"prune":    {"keep", "dry-run"},
	"refresh":  {"expires", "public", "sign-manifest"},
}

func (c command) manage(ctx context.Context, do string, args []string) error {
	m := manageFlags{given: map[string]bool{}}
	f := flag.NewFlagSet("release "+do, flag.ContinueOnError)
	f.StringVar(&m.server, "server", "", "`ROOT` of the web server's directories, or an image's directory in it")
	f.StringVar(&m.image, "image", "", "`ARCH/IMAGE-ID`, where ROOT has several")
	f.StringVar(&m.channel, "channel", string(manifest.Stable), "`CHANNEL` that names the release: stable, beta or alpha")
	f.IntVar(&m.rollout, "rollout", 100, "`PERCENT` of the machines that take the release")
	f.StringVar(&m.reports, "reports", "", "`DIR` of what machines have told")
	f.StringVar(&m.waves, "waves", "1,5,20,50,100", "`LIST` of shares of the machines in percent")
	f.IntVar(&m.limit, "limit", 5, "`PERCENT` of the trials that may fail")
	f.IntVar(&m.least, "least", 20, "`N` reports that the first wave has to bring; later ones more")
	m.every = 24 * time.Hour
	f.Var((*lifetime)(&m.every), "every", "how long a wave lasts at the least, a `DURATION` such as 24h or 3d")
	f.StringVar(&m.to, "to", "", "`VERSION` that takes its place")
	f.IntVar(&m.keep, "keep", 3, "`N` releases that stay, the newest")
	f.BoolVar(&m.dry, "dry-run", false, "only say what would be removed")
	f.BoolVar(&m.remove, "remove", false, "it is a step no more")
	f.Var((*lifetime)(&m.expires), "expires", "how long machines may believe the manifest from now on, a `DURATION` such as 30d or 720h; 0 for ever")
	f.StringVar(&m.public, "public", "", "newer copy of the public release key, a `FILE`")
	f.BoolVar(&m.sign, "sign-manifest", false, "sign the manifest, and number it, from now on")
	f.BoolVar(&m.json, "json", false, "print the list in JSON")
	m.reader.add(f)
	c.keyOptions(f, &m.key, &m.agent)
	rest, err := c.parse(f, args, manageSummary)
	if err != nil {
		return err
	}
	f.Visit(func(given *flag.Flag) {
		m.given[given.Name] = true
		for _, options := range managed {
			for _, name := range options {
				mine := strings.Contains(" "+strings.Join(managed[do], " ")+" ", " "+name+" ")
				if name == given.Name && !mine && err == nil {
					err = c.misused(f, "--%s does not go with %s", name, do)
				}
			}
		}
	})
	if err != nil {
		return err
	}
	if do == "list" {
		return c.list(ctx, f, m, rest)
	}
	want := map[string]int{"promote": 1, "withdraw": 1, "step": 1}[do]
	if len(rest) != want || m.server == "" {
		return c.misused(f, "want --server ROOT%s", map[int]string{1: " and one VERSION"}[want])
	}
	return c.change(ctx, f, do, m, rest)
}

// keyOptions are those of a key that signs.
func (c command) keyOptions(f *flag.FlagSet, k *release.KeyFile, agent *bool) {
	f.StringVar(&k.Path, "key", "", "secret release `KEY`; without one nothing is signed")
	f.StringVar(&k.Password, "password-file", "", "`FILE` whose first line is the key's password")
	f.BoolVar(&k.Unprotected, "allow-unprotected-key", false, "take a key without a password: anyone who reads its file can then sign what every machine installs")
	f.BoolVar(&k.UnencryptedStorage, "allow-unencrypted-storage", false, storageRisk)
	f.BoolVar(&k.GPG, "gpg", false, "sign with gpg, whose agent, smart card or PKCS#11 token holds the pinned key's secret, instead of --key")
	f.BoolVar(agent, "agent", false, "get the key's password from gpg-agent")
}

// change does what one of the commands asks for.
func (c command) change(ctx context.Context, f *flag.FlagSet, do string, m manageFlags, rest []string) error {
	if m.key.GPG && (m.key.Path != "" || m.agent) {
		return c.misused(f, "--gpg stands in place of --key and its password")
	}
	if m.key.Path != "" {
		if err := c.protect(); err != nil {
			return err
		}
	}
	var versions [2]contract.Version
	for i, text := range append(rest, m.to) {
		if text == "" {
			continue
		}
		v, err := contract.ParseVersion(text)
		if err != nil {
			return c.misused(f, "%v", err)
		}
		versions[i] = v
	}
	if err := onThisMachine(m.server); err != nil {
		return err
	}
	directory, err := oneImage(m.server, m.image)
	if err != nil {
		return err
	}
	note := image.NewProgress(c.stderr).Note
	m.key.Ask = func() (*keys.Password, error) { return c.ask(ctx, m.agent, "Password of "+m.key.Path) }
	o := release.Manage{Directory: directory, Key: m.key, Now: time.Now(), Note: note}
	switch do {
	case "promote":
		channel, err := manifest.ParseChannel(m.channel)
		if err != nil {
			return c.misused(f, "--channel: %v", err)
		}
		return release.Promote(ctx, o, versions[0], channel, release.Rollout{Limited: m.rollout != 100, Percent: share(m.rollout)})
	case "rollout":
		return c.rollout(ctx, f, o, m)
	case "withdraw":
		return release.Withdraw(ctx, o, versions[0], versions[1])
	case "step":
		return release.SetStep(ctx, o, versions[0], !m.remove)
	case "prune":
		gone, err := release.Prune(ctx, o, m.keep, m.dry)
		for _, v := range gone {
			fmt.Fprintln(c.stdout, v)
		}
		return err
	}
	r := release.Refresh{Lifetime: m.expires, Sign: m.sign}
	if m.given["expires"] && m.expires <= 0 {
		r.Lifetime = -1
	}
	if r.Public, err = readKey(m.public); err != nil {
		return err
	}
	return release.RefreshManifest(ctx, o, r)
}

// rollout brings a release to its next wave, or stops it.
func (c command) rollout(ctx context.Context, f *flag.FlagSet, o release.Manage, m manageFlags) error {
	channel, err := manifest.ParseChannel(m.channel)
	if err != nil {
		return c.misused(f, "--channel: %v", err)
	}
	p := release.Plan{Limit: m.limit, Least: m.least, Every: m.every}
	for text := range strings.SplitSeq(m.waves, ",") {
		wave, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return c.misused(f, "--waves: %q is not a share in percent: want a list like 1,5,20,50,100", text)
		}
		p.Waves = append(p.Waves, wave)
	}
	if err := p.Check(); err != nil {
		return c.misused(f, "%v", err)
	}
	if m.reports == "" {
		return c.misused(f, "want --reports DIR, where the machines' reports are")
	}
	told, err := reports.Read(ctx, m.reports)
	if err != nil {
		return err
	}
	p.Hold = told.Missing
	arch, imageID := o.Directory.Place()
	decided, err := release.Advance(ctx, o, channel, p, func(v contract.Version) (kept, failed int) {
		counts := told.Of(arch, imageID, v, channel)
		return counts.Kept, counts.Failed
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, decided)
	if told.Missing != "" {
		return fmt.Errorf("the reports in %s were not all read: %s", m.reports, told.Missing)
	}
	return nil
}

// share is the percentage of a rollout; all machines are no share.
func share(percent int) int {
	if percent == 100 {
		return 0
	}
	return percent
}

// oneImage finds the one image that is meant.
func oneImage(root, imageID string) (release.Directory, error) {
	all, err := release.Directories(root)
	if err != nil {
		return "", err
	}
	var names []string
	for _, f := range all {
		arch, id := f.Place()
		if imageID == arch+"/"+id || imageID == id {
			return f, nil
		}
		names = append(names, arch+"/"+id)
	}
	switch {
	case imageID == "" && len(all) == 1:
		return all[0], nil
	case imageID == "":
		return "", fmt.Errorf("%s has several images: name one with --image (%s)", root, strings.Join(names, ", "))
	}
	return "", fmt.Errorf("%s has no image %s (it has %s)", root, imageID, strings.Join(names, ", "))
}

func (c command) list(ctx context.Context, f *flag.FlagSet, m manageFlags, rest []string) error {
	if m.server != "" {
		rest = append(rest, m.server)
	}
	if len(rest) != 1 {
		return c.misused(f, "want one ROOT or URL")
	}
	reader, err := m.reader.options(func(text string) { fmt.Fprintln(c.stderr, text) })
	if err != nil {
		return err
	}
	places, err := servers(rest[0], reader)
	if err != nil {
		return err
	}
	all := map[string][]release.Listed{}
	for _, s := range places {
		l, err := release.List(ctx, s, time.Now())
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		all[s.String()] = l
		if m.json {
			continue
		}
		fmt.Fprintln(c.stdout, s)
		for _, one := range l {
			fmt.Fprintf(c.stdout, "  %s\n", one)
		}
	}
	if m.json {
		return c.printJSON(all)
	}
	return nil
}

const archiveSummary = `usage: halogen release archive --build DIR --out DIR

Makes the archive of a build for somebody who signs and publishes by hand, with
nothing but gpg and an editor. For version 7 of an image, with ROOT on the server:

  cd ROOT/<arch>/<image-id>
  halogen release archive --build DIR --out 7        7/7.tar.gz and 7/release.json
  gpg --detach-sign --output 7/release.json.pgp 7/release.json
  halogen release archive --build DIR --out 7        again: the signature goes into it
  gpg --detach-sign --output 7/7.tar.gz.pgp 7/7.tar.gz
  gpg --export FINGERPRINT >release-key.pgp          once, and when it was renewed
  $EDITOR manifest.env                               STABLE=7
                                                     PUBKEY=release-key.pgp
  halogen release --verify .

Each extension of the release has an archive of its own, NAME.tar.gz, described by
NAME.release.json: sign both as the release's.

gpg's --local-user FINGERPRINT chooses the key where it has several. An image that
has pinned no key needs neither signatures nor PUBKEY. A manifest that is signed
(manifest.env.pgp) is signed again after each change, with a greater SEQUENCE:

  gpg --detach-sign --output manifest.env.pgp manifest.env
`

func (c command) archive(ctx context.Context, args []string) error {
	var o release.ArchiveOptions
	f := flag.NewFlagSet("release archive", flag.ContinueOnError)
	f.StringVar(&o.Build, "build", "", "`DIR` that 'halogen build' filled")
	f.StringVar(&o.Out, "out", "", "`DIR` for the archive and its release.json; made when missing")
	dbx := f.String("dbx", "", dbxUsage)
	rest, err := c.parse(f, args, archiveSummary)
	if err != nil {
		return err
	}
	if len(rest) > 0 || o.Build == "" || o.Out == "" {
		return c.misused(f, "want --build and --out, and nothing else")
	}
	if *dbx != "" {
		if o.Revocations, err = release.ReadRevocations(*dbx); err != nil {
			return fmt.Errorf("--dbx %w", err)
		}
	}
	o.Now = time.Now()
	r, err := release.Archive(ctx, o)
	if err != nil {
		return err
	}
	for _, a := range append([]release.ArchiveResult{*r}, r.Extensions...) {
		if !a.Signed {
			fmt.Fprintf(c.stderr, "%s is not signed: sign %s (gpg --detach-sign --output %[2]s.pgp %[2]s) and run this again, unless the image has pinned no key\n", a.Archive, a.Description)
		}
		if _, err := fmt.Fprintln(c.stdout, a.Archive); err != nil {
			return err
		}
	}
	return nil
}
