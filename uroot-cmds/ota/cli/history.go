package cli

import (
	"context"
	"fmt"
	"strings"

	"halogenos.internal/boot/journal"
)

const historyUsage = `usage: ota history [--all] [--json]

Says what became of this machine's systems, oldest first: updates, trials, fallbacks,
rollbacks, repairs, and what somebody accepted with the recovery key, each with its
reason. Times are of a clock that may have been off.

  --all  the starts of the system that ran before, too

What is older than the boot journal has room for is left out, starts first.
`

func history(_ context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	h, err := c.machine.History(*c.all)
	if err != nil {
		return nil, err
	}
	if len(h.Entries) == 0 {
		fmt.Fprintln(c.out, "the boot journal is empty")
	}
	for _, e := range h.Entries {
		fmt.Fprintf(c.out, "%s  %s\n", e.Time.UTC().Format("2006-01-02 15:04"), plain(sentence(e)))
	}
	return h, nil
}

// happened says what an entry is about, with VERSION and SLOT for its own.
var happened = map[journal.Kind]string{
	journal.Boot:      "version VERSION starts",
	journal.Fetched:   "version VERSION is fetched into slot SLOT",
	journal.Staged:    "version VERSION gets its tries",
	journal.Refused:   "version VERSION is refused",
	journal.Blessed:   "version VERSION has proven itself and stays",
	journal.Unhealthy: "version VERSION is not healthy",
	journal.Condemned: "version VERSION loses its tries",
	journal.NoRoom:    "version VERSION finds no room",
	journal.Failed:    "version VERSION is not taken again",
	journal.Retry:     "version VERSION gets its tries again",
	journal.Rollback:  "version VERSION is given up",
	journal.Forgiven:  "version VERSION may be fetched again",
	journal.Healed:    "repaired by itself",
	journal.Repaired:  "blocks of slot SLOT are repaired",
	journal.Recovery:  "the recovery console opens",
	journal.Accepted:  "the machine is accepted",
	journal.LeftOut:   "what is enabled is not all there",
	journal.NewKey:    "the recovery key",
	journal.Grown:     "larger slots",
	journal.Floor:     "versions that were replaced are shut out for good",
	journal.State:     "the directories that all systems share",
}

// sentence says an entry for people. One of a kind that this release does not know is said
// as it is.
func sentence(e journal.Entry) string {
	text, known := happened[e.Kind]
	if !known {
		text = string(e.Kind)
		if e.Version != 0 {
			text += ", version VERSION"
		}
	}
	version, slot := "(unknown)", "(unknown)"
	if e.Version != 0 {
		version = e.Version.String()
	}
	if e.Slot.Valid() {
		slot = e.Slot.String()
	}
	text = strings.NewReplacer("VERSION", version, "SLOT", slot).Replace(text)
	if e.Kind == journal.Boot && e.Trial {
		text += ", on trial"
	}
	if e.Watchdog {
		text += ", after the watchdog ended the boot before"
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}
