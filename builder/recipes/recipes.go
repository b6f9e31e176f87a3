// Package recipes holds the scripts that make root file systems, so that
// `halogen` can take them into a container.
//
// Each directory has an executable make-rootfs, which writes one tar archive and
// takes what it needs to know from its environment. Nothing here knows of keys.
package recipes

import "embed"

// FS has a directory for each recipe.
//
//go:embed debian gentoo desktop added entries finish-system
var FS embed.FS
