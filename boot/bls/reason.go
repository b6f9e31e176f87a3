package bls

import (
	"fmt"
	"slices"
)

// Reason says why the boot manager chose a system, as far as the names on the ESP tell.
func Reason(booted Name, names []Name) string {
	others := slices.DeleteFunc(slices.Clone(names), func(n Name) bool { return n == booted })
	if booted.Counted {
		return trialReason(booted, others)
	}
	if len(others) == 0 {
		return "it is the only system"
	}
	for _, n := range others {
		switch {
		case n.Version > booted.Version && n.Bad():
			return fmt.Sprintf("version %s has no tries left", n.Version)
		case n.Version > booted.Version:
			return fmt.Sprintf("it was chosen by hand: version %s would be next", n.Version)
		}
	}
	return "it is the newest that was blessed"
}

func trialReason(booted Name, others []Name) string {
	spare := slices.ContainsFunc(others, func(n Name) bool { return !n.Bad() })
	if booted.Left == 0 && !spare {
		return "no system has tries left"
	}
	return fmt.Sprintf("it is on trial: try %d of %d", max(booted.Done, 1), booted.Left+max(booted.Done, 1))
}
