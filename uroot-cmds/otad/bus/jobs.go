package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"

	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// A job is one on the bus.
type job struct {
	kind     string
	progress func() uint32 // in percent
	cancel   func()
}

// begin puts a job on the bus.
func (b *Bus) begin(id uint64, j job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.jobs[id] = j
}

// finish takes a job off the bus, and says how it has ended.
func (b *Bus) finish(id uint64, status int32) {
	b.mu.Lock()
	delete(b.jobs, id)
	b.mu.Unlock()
	_ = b.conn.Emit(root, managerFace+".JobRemoved", id, jobPath(id), status)
}

// jobsPath is above all jobs.
const jobsPath = root + "/job"

func jobPath(id uint64) dbus.ObjectPath {
	return dbus.ObjectPath(fmt.Sprintf("%s/_%d", jobsPath, id))
}

// jobs are all of them: one object, made before anybody can call, answers for those that
// come and go.
type jobs struct{ b *Bus }

// jobProperties and jobText have a Get and an Introspect each of their own.
type (
	jobProperties struct{ jobs }
	jobText       struct{ jobs }
)

// exportJobs puts them on the bus.
func (b *Bus) exportJobs() error {
	all := jobs{b}
	return errors.Join(
		b.conn.ExportSubtree(&jobCalls{all}, jobsPath, jobFace),
		b.conn.ExportSubtree(&jobProperties{all}, jobsPath, propertiesFace),
		b.conn.ExportSubtree(&jobText{all}, jobsPath, "org.freedesktop.DBus.Introspectable"))
}

const propertiesFace = "org.freedesktop.DBus.Properties"

// find is the job that a message is for.
func (j jobs) find(msg dbus.Message) (id uint64, _ job, _ *dbus.Error) {
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	for id, found := range j.b.jobs {
		if jobPath(id) == path {
			return id, found, nil
		}
	}
	return 0, job{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownObject", []any{"there is no such job"})
}

// jobCalls are the methods of a job.
type jobCalls struct{ jobs }

// Cancel implements org.freedesktop.sysupdate1.Job.
func (j *jobCalls) Cancel(msg dbus.Message) *dbus.Error {
	_, found, err := j.find(msg)
	if err != nil {
		return err
	}
	done, denied := j.b.enter(msg, polkit.Fetch)
	if denied != nil {
		return denied
	}
	defer done()
	found.cancel()
	return nil
}

// properties are those of a job, as they are now.
func properties(id uint64, j job) map[string]dbus.Variant {
	return map[string]dbus.Variant{
		"Id": dbus.MakeVariant(id), "Type": dbus.MakeVariant(j.kind),
		"Offline": dbus.MakeVariant(false), "Progress": dbus.MakeVariant(j.progress()),
	}
}

// Get implements org.freedesktop.DBus.Properties.
func (j *jobProperties) Get(msg dbus.Message, face, name string) (dbus.Variant, *dbus.Error) {
	all, err := j.GetAll(msg, face)
	if err != nil {
		return dbus.Variant{}, err
	}
	v, ok := all[name]
	if !ok {
		return dbus.Variant{}, prop.ErrPropNotFound
	}
	return v, nil
}

// GetAll implements org.freedesktop.DBus.Properties.
func (j *jobProperties) GetAll(msg dbus.Message, face string) (map[string]dbus.Variant, *dbus.Error) {
	id, found, err := j.find(msg)
	if err != nil {
		return nil, err
	}
	if face != jobFace {
		return nil, prop.ErrIfaceNotFound
	}
	return properties(id, found), nil
}

// Set implements org.freedesktop.DBus.Properties.
func (*jobProperties) Set(string, string, dbus.Variant) *dbus.Error { return prop.ErrReadOnly }

// Introspect implements org.freedesktop.DBus.Introspectable.
func (j *jobText) Introspect(msg dbus.Message) (string, *dbus.Error) {
	node := &introspect.Node{}
	if path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath); path == jobsPath {
		j.b.mu.Lock()
		for id := range j.b.jobs {
			node.Children = append(node.Children, introspect.Node{Name: fmt.Sprintf("_%d", id)})
		}
		j.b.mu.Unlock()
	} else if _, _, err := j.find(msg); err != nil {
		return "", err
	} else {
		read := func(name, kind, emits string) introspect.Property {
			return introspect.Property{Name: name, Type: kind, Access: "read", Annotations: []introspect.Annotation{{Name: "org.freedesktop.DBus.Property.EmitsChangedSignal", Value: emits}}}
		}
		node.Interfaces = []introspect.Interface{introspect.IntrospectData, prop.IntrospectData, {
			Name: jobFace, Methods: introspect.Methods(&jobCalls{}),
			Properties: []introspect.Property{read("Id", "t", "const"), read("Type", "s", "const"), read("Offline", "b", "const"), read("Progress", "u", "true")},
		}}
	}
	return introspect.NewIntrospectable(node).Introspect()
}

// percent is how far a fetch is. What is still to be checked when all is there counts for
// the last ten.
func percent(p machine.Progress) uint32 {
	part := func(done, total, of int64) uint32 {
		if total <= 0 {
			return 0
		}
		return uint32(min(max(done*of/total, 0), of))
	}
	switch {
	case p.Phase == fetch.Verifying:
		return 90 + part(p.Done, p.Progress.Total, 10)
	case p.FetchTotal != nil:
		return part(p.Fetched, *p.FetchTotal, 90)
	}
	return 0
}

// errno of systemd's: what JobRemoved says of a job that failed, or was cancelled.
const (
	failure   = -5   // -EIO
	cancelled = -125 // -ECANCELED
)

// follow puts a job on the bus until it has ended. A bus that is gone has no listeners.
func (b *Bus) follow(j *service.Job) {
	path := jobPath(j.ID)
	b.begin(j.ID, job{kind: "update", progress: func() uint32 { return percent(j.Progress()) }, cancel: j.Cancel})
	go func() {
		last := uint32(0)
		_ = j.Follow(context.Background(), func(p machine.Progress) error { // it ends with the job
			if now := percent(p); now > last {
				last = now
				_ = b.conn.Emit(path, propertiesFace+".PropertiesChanged", jobFace, map[string]dbus.Variant{"Progress": dbus.MakeVariant(now)}, []string{})
			}
			return nil
		})
		b.finish(j.ID, status(j))
	}()
}

// status says how a job ended.
func status(j *service.Job) int32 {
	out, err := j.Outcome()
	switch {
	case errors.Is(err, service.ErrCancelled):
		return cancelled
	case err != nil || !out.Staged:
		return failure
	}
	return 0
}
