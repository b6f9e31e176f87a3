package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"halogenos.internal/qemu-tests/bench/measure"
)

var crashStates = measure.Metric{Name: "crash states", Unit: "/s"}

// goBenchmarks plans rows 10 and 11, which Go benchmarks measure in the process.
func (b *bench) goBenchmarks(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	program := filepath.Join(b.work, "agent.test")
	if _, err := measure.Command("go", "test", "-c", "-o", program, "./initagent/agent")(ctx); err != nil {
		return nil, nil, err
	}
	return []measure.Job{{
		Name:  "staging",
		Sides: []measure.Side{{Name: "initagent", Run: goBenchmark(program, "BenchmarkStage", "s/staging", measure.Wall)}},
		Goals: []measure.Goal{{Number: 10, Work: "staging at boot, UKI of 50 MB (the image is not read)", Metric: measure.Wall, Kind: measure.AtMost, N: 1}},
	}, {
		Name:  "crash-states",
		Sides: []measure.Side{{Name: "initagent", Run: goBenchmark(program, "BenchmarkEverySequence", "states/s", crashStates)}},
		Goals: []measure.Goal{{Number: 11, Work: "update life cycle, cut at every write", Metric: crashStates, Kind: measure.AtLeast, N: 1000}},
	}}, nil, nil
}

// goBenchmark runs one benchmark of a test program and takes one of its metrics.
func goBenchmark(program, name, unit string, as measure.Metric) func(context.Context) (measure.Sample, error) {
	return func(ctx context.Context) (measure.Sample, error) {
		var said bytes.Buffer
		cmd := exec.CommandContext(ctx, program, "-test.run=^$", "-test.bench=^"+name+"$", "-test.benchtime=1x")
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", name, err, said.String())
		}
		fields := strings.Fields(said.String())
		for i, f := range fields {
			if f == unit && i > 0 {
				v, err := strconv.ParseFloat(fields[i-1], 64)
				return measure.Sample{as: v}, err
			}
		}
		return nil, fmt.Errorf("%s reports no %s: %s", name, unit, said.String())
	}
}
