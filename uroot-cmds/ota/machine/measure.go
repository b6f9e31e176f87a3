package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"halogenos.internal/boot/archive"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// measure has a worker find out how much of the release this machine would fetch. The
// worker gets the block index for it, which the fetch needs, too; the slot it can only
// read. What it says is for people: a worker that lies here gains nothing by it. Why it
// cannot be said is a note.
func (u *update) measure(ctx context.Context, out *Outcome, head *archive.Head) error {
	err := u.mayMeasure(ctx)
	if err == nil {
		err = u.room(head.Release)
	}
	if err == nil {
		err = u.measureBy(ctx, out)
	}
	if err == nil {
		err = u.measureExtensions(ctx, out, head)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		u.Tell(worker.Event{Note: fmt.Sprintf("how much of it would be fetched is not known: %v", err)})
	}
	return nil
}

// mayMeasure refuses where no fetch would follow, and on a network that costs by the byte: the
// block index has some MB.
func (u *update) mayMeasure(ctx context.Context) error {
	if c := u.Surroundings(ctx); c.Metered && !u.settings.When.Metered && !local(cmp.Or(u.From, u.settings.Server)) {
		return errors.New("the network is metered (NetworkManager says so), and finding it out takes some MB; FetchMetered=yes in /etc/halogen/ota.conf allows it")
	}
	return u.mayFetch()
}

// measureExtensions adds what would be fetched of the release's extensions that are enabled.
func (u *update) measureExtensions(ctx context.Context, out *Outcome, head *archive.Head) error {
	more, err := u.foresee(ctx, head)
	if err != nil || more == 0 {
		return err
	}
	*out.Fetch += more
	u.Tell(worker.Event{Measured: &fetch.Measured{Bytes: *out.Fetch}})
	return nil
}

func (u *update) measureBy(ctx context.Context, out *Outcome) error {
	if err := u.directory(out.Version, measured); err != nil {
		return err
	}
	files, closeFiles, err := u.files(u.work(out.Version), false)
	if err != nil {
		return err
	}
	err = u.Worker.Run(ctx, u.workRequest(worker.Measure), files, func(e worker.Event) {
		if e.Measured != nil {
			out.Fetch = &e.Measured.Bytes
		}
		u.Tell(e)
	})
	if err == nil && out.Fetch == nil {
		err = errors.New("worker ended without an answer and does not say why")
	}
	return errors.Join(err, closeFiles())
}
