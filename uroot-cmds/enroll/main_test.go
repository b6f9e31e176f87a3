package main

import (
	"testing"

	"halogenos.internal/initagent/command/commandtest"
)

// What it does is tested on the simulated machine, in initagent/recovery.
func TestUse(t *testing.T) { commandtest.UseAtConsole(t, cmd) }
