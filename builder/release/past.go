package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/room"
)

// Past returns what the last releases on a server take of a machine, the newest first: those
// before a version, or all for 0. pinned is the key that signed them; where it is empty,
// the one that the server shows counts. note is told of those that cannot be read, which are left out.
func Past(ctx context.Context, s Server, pinned []byte, before contract.Version, now time.Time, note func(string, ...any)) ([]room.Release, error) {
	_, key, err := shownKey(ctx, s)
	if len(pinned) > 0 {
		key, err = pgp.ParseKey(pinned)
	}
	if err != nil {
		return nil, fmt.Errorf("release key: %w", err)
	}
	versions, err := s.Versions(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(versions)
	var all []room.Release
	for _, v := range slices.Backward(versions) {
		if before != 0 && v >= before {
			continue
		}
		if len(all) == room.MaxPast {
			break
		}
		p, err := readPublished(ctx, s, v, key, now)
		if ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		if err != nil {
			note("release %s on %s is not counted: %v", v, s, err)
			continue
		}
		all = append(all, room.Of(p.release, p.able))
	}
	return all, nil
}

// fits reports why machines with one release have no room for another's UKI, or why what
// follows that would not know how much they have. Either may be nil, of which nothing is known.
func fits(is *release.Release, able contract.Abilities, on *release.Release, has contract.Abilities) error {
	if is == nil || on == nil {
		return nil
	}
	fresh, was := room.Of(is, able), room.Of(on, has)
	if fresh.ESP > was.ESP {
		return fmt.Errorf("its UKI does not say that there are EFI system partitions of %d MiB: build it with --server or --previous, so that no release after it is too large for them", was.ESP>>20)
	}
	return room.Fits(fresh, was)
}
