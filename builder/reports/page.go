package reports

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"

	"halogenos.internal/boot/trialreport"
)

// Nginx is a configuration of nginx for a server that takes reports.
//
//go:embed nginx.conf
var Nginx string

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent": percent, "causes": (*Release).causes, "few": func(h []Hardware) []Hardware { return h[:min(len(h), maxHardware)] },
}).Parse(pageText))

// maxHardware is how many makes of machines a page and a text show of a release.
const maxHardware = 10

// percent is a part of a whole, in percent.
func percent(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

// causes are why trials failed, the commonest first.
func (r *Release) causes() string {
	var all []string
	for _, c := range slices.SortedFunc(maps.Keys(r.Causes), func(a, b trialreport.Cause) int {
		return cmp.Or(cmp.Compare(r.Causes[b], r.Causes[a]), cmp.Compare(a, b))
	}) {
		all = append(all, fmt.Sprintf("%s %d", c, r.Causes[c]))
	}
	return strings.Join(all, ", ")
}

// HTML writes a page that needs nothing else: no script, no picture, no other server.
func (c *Collection) HTML(w io.Writer) error { return page.Execute(w, c) }

// Text writes the same for a terminal.
func (c *Collection) Text(w io.Writer) error {
	var out strings.Builder
	for _, image := range c.Images {
		fmt.Fprintf(&out, "%s/%s\n", image.Arch, image.ImageID)
		for _, r := range image.Releases {
			fmt.Fprintf(&out, "  %s: %d kept, %d failed (%.1f %%), %s to %s\n", r.Version, r.Kept, r.Failed, percent(r.Failed, r.Total()), r.First, r.Last)
			if r.Failed == 0 {
				continue
			}
			fmt.Fprintf(&out, "    failed: %s\n", r.causes())
			for _, h := range r.Hardware[:min(len(r.Hardware), maxHardware)] {
				if h.Failed > 0 {
					fmt.Fprintf(&out, "    %d of %d on %s\n", h.Failed, h.Total(), h.Name)
				}
			}
		}
	}
	if len(c.Images) == 0 {
		out.WriteString("there are no reports yet\n")
	}
	if c.Malformed > 0 {
		fmt.Fprintf(&out, "%d files are not reports\n", c.Malformed)
	}
	if c.Missing != "" {
		fmt.Fprintf(&out, "not all was read: %s\n", c.Missing)
	}
	_, err := io.WriteString(w, out.String())
	return err
}
