package service

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"halogenos.internal/uroot-cmds/ota/machine"
)

// A check that waits for its turn when a fetch begins lets the fetch go first: it cannot be
// ended yet, and would keep the machine for as long as a server likes.
func TestFetchBeforeCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(func() *machine.Machine {
			t.Error("a check is made before the fetch")
			return &machine.Machine{}
		})
		s.checking <- struct{}{} // another check is under way
		ctx, cancel := context.WithCancel(t.Context())
		checked := make(chan error, 1)
		go func() {
			_, err := s.Check(ctx)
			checked <- err
		}()
		synctest.Wait() // it is the next
		s.mu.Lock()
		j := &Job{Done: make(chan struct{}), entered: make(chan struct{})}
		s.job = j
		s.mu.Unlock()
		<-s.checking // the other check ends
		s.checking <- struct{}{}
		close(j.entered)
		synctest.Wait()
		cancel()
		if err := <-checked; !errors.Is(err, context.Canceled) {
			t.Errorf("the check ends with %v", err)
		}
	})
}
