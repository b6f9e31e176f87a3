package main

import (
	"testing"

	"halogenos.internal/initagent/command/commandtest"
)

// What it does is tested where a whole machine is, in initagent/agent.
func TestUse(t *testing.T) { commandtest.UseAtConsole(t, cmd) }
