package main

import (
	"context"
	"errors"
	"fmt"
)

// child does our side of a job in a process of its own, as the others are:
// started for it, and with memory that is its alone.
func child(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("child: what shall it do?")
	}
	work, ok := map[string]func(context.Context, []string) error{
		"verity":  childVerity,
		"uki":     childUKI,
		"archive": childArchive,
	}[args[0]]
	if !ok {
		return fmt.Errorf("child: %q is not known", args[0])
	}
	return work(ctx, args[1:])
}
