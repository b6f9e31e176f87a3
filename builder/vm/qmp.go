package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

const (
	// maxQMPLine bounds a message of QEMU's, in bytes.
	maxQMPLine = 16 << 20
	// maxEvents bounds the events kept that nobody waited for.
	maxEvents = 4096
	// maxReplies bounds the replies kept of commands that gave up waiting.
	maxReplies = 64
)

// Event is what QEMU reports by itself: RESET, SHUTDOWN, WATCHDOG,
// GUEST_PANICKED, ... (QEMU QMP Reference Manual, "Events").
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// QMP is the connection to QEMU's monitor (QEMU Machine Protocol Specification).
type QMP struct {
	conn io.ReadWriteCloser

	command sync.Mutex // held from a command to its reply

	mu      sync.Mutex
	replies chan qmpMessage
	events  []Event       // in order, not yet waited for
	reason  string        // of the last SHUTDOWN event
	changed chan struct{} // closed and replaced when an event arrives
	done    chan struct{} // closed when the connection ended
	id      uint64
}

// qmpMessage is any message from QEMU: the greeting, a reply or an event.
type qmpMessage struct {
	Greeting  json.RawMessage `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	ID        uint64          `json:"id"`
	Error     *QMPError       `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// QMPError is a command that QEMU refused.
type QMPError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error implements error.
func (e *QMPError) Error() string { return e.Class + ": " + e.Desc }

// newQMP takes over a connection and reads from it until it ends.
func newQMP(conn io.ReadWriteCloser) *QMP {
	q := &QMP{conn: conn, replies: make(chan qmpMessage, maxReplies), changed: make(chan struct{}), done: make(chan struct{})}
	go q.read()
	return q
}

// negotiate leaves the negotiation mode in which a connection starts.
func (q *QMP) negotiate(ctx context.Context) error { return q.Do(ctx, "qmp_capabilities", nil, nil) }

func (q *QMP) read() {
	defer close(q.done)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(make([]byte, 4096), maxQMPLine)
	for lines.Scan() {
		var m qmpMessage
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			return // QEMU does not speak the protocol; commands fail with ErrEnded
		}
		switch {
		case m.Greeting != nil:
		case m.Event != "":
			q.keep(Event{m.Event, m.Data, time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		default:
			select {
			case q.replies <- m:
			default: // a reply nobody asked for
			}
		}
	}
}

func (q *QMP) keep(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var data struct {
		Reason string `json:"reason"`
	}
	if e.Name == "SHUTDOWN" && json.Unmarshal(e.Data, &data) == nil {
		q.reason = data.Reason
	}
	q.events = append(q.events, e)
	if len(q.events) > maxEvents {
		q.events = slices.Delete(q.events, 0, maxEvents/2)
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// Do executes a command and decodes what it returns into result (nil: dropped). A
// command that QEMU refuses gives a [*QMPError].
func (q *QMP) Do(ctx context.Context, command string, arguments, result any) error {
	q.command.Lock()
	defer q.command.Unlock()
	for len(q.replies) > 0 {
		<-q.replies // of commands that gave up waiting
	}
	q.id++
	request := map[string]any{"execute": command, "id": q.id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", command, errors.Join(ErrEnded, err))
	}
	for {
		reply, err := q.reply(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("qmp %s: %w", command, err)
		case reply.ID != q.id && reply.ID != 0: // QEMU leaves the id out of what it cannot parse
			continue // of a command whose context ended
		case reply.Error != nil:
			return fmt.Errorf("qmp %s: %w", command, reply.Error)
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(reply.Return, result); err != nil {
			return fmt.Errorf("qmp %s: reply: %w", command, err)
		}
		return nil
	}
}

// reply waits for the next reply; one that arrived before the connection ended
// still counts.
func (q *QMP) reply(ctx context.Context) (qmpMessage, error) {
	select {
	case m := <-q.replies:
		return m, nil
	case <-ctx.Done():
		return qmpMessage{}, context.Cause(ctx)
	case <-q.done:
		select {
		case m := <-q.replies:
			return m, nil
		default:
			return qmpMessage{}, ErrEnded
		}
	}
}

// WaitEvent waits for the first event of one of the names that was not waited for
// yet, and consumes it; events of other names stay.
func (q *QMP) WaitEvent(ctx context.Context, names ...string) (Event, error) {
	for {
		q.mu.Lock()
		i := slices.IndexFunc(q.events, func(e Event) bool { return slices.Contains(names, e.Name) })
		if i >= 0 {
			e := q.events[i]
			q.events = slices.Delete(q.events, i, i+1)
			q.mu.Unlock()
			return e, nil
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
			continue
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("waiting for event %q: %w", names, context.Cause(ctx))
		case <-q.done:
			select {
			case <-changed: // it arrived with the end
			default:
				return Event{}, fmt.Errorf("waiting for event %q: %w", names, ErrEnded)
			}
		}
	}
}

// Status returns the run state: running, paused, shutdown, ... (QMP query-status).
func (q *QMP) Status(ctx context.Context) (string, error) {
	var status struct {
		Status string `json:"status"`
	}
	err := q.Do(ctx, "query-status", nil, &status)
	return status.Status, err
}

// shutdownReason returns the reason of the last SHUTDOWN event, or "" when there
// was none (QEMU QMP Reference Manual, ShutdownCause).
func (q *QMP) shutdownReason() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reason
}
