// Command bench measures this project beside what people would use instead.
//
//	bench -images DIR -rootfs DIR -tools DIR -chroot DIR -out DIR
//
// `make bench` makes what it needs and calls it. Results are added to those in
// OUT/bench.json, so that rows can be measured again alone; OUT/bench.svg is the
// chart. It fails when a side's output is wrong, and not when a goal is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"halogenos.internal/qemu-tests/bench/measure"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A bench is where things are.
type bench struct {
	images string // directory with the images that make builds
	rootfs string // a Debian root file system, unpacked
	tools  string // a Debian 13 with ukify and mkfs.erofs
	chroot string // a Debian 13 with the kernel of rootfs and the generators of initramfs images
	bin    string // directory with halogen, bb and what belongs to them
	key    string // directory with a release key
	out    string // for the results
	work   string // for the files of this run
	self   string // this program, which is also the child of some measurements

	booster string   // directory with booster's generator and init; empty for none
	rooms   []string // directories in Debian trees, to be removed

	noGrowth bool // over the image's size, which takes longest
}

type options struct {
	rows     map[int]bool // empty for all
	runs     int
	markdown bool
	show     bool

	baseline string // file; empty for none
	settle   bool   // write it
}

func (o *options) wants(number int) bool { return len(o.rows) == 0 || o.rows[number] }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "child" {
		return child(ctx, args[1:])
	}
	b, o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	file := filepath.Join(b.out, "bench.json")
	report, err := measure.Load(file)
	if err != nil {
		return err
	}
	var failed error
	if !o.show {
		failed = b.measure(ctx, report, o, stderr)
		if err := report.Save(file); err != nil {
			return err
		}
	}
	report.Add(nil) // results of an earlier version of this program are judged by this one
	if err := b.chart(report); err != nil {
		return err
	}
	write := report.Table
	if o.markdown {
		write = report.Markdown
	}
	return errors.Join(write(stdout), compare(report, o, stdout), failed)
}

// compare says what became worse than the baseline, or makes the report the baseline.
func compare(report *measure.Report, o *options, stdout io.Writer) error {
	if o.baseline == "" {
		return nil
	}
	if o.settle {
		return report.Baseline().Save(o.baseline)
	}
	baseline, err := measure.Load(o.baseline)
	if err != nil {
		return err
	}
	if len(baseline.Rows) == 0 {
		fmt.Fprintf(stdout, "%s has nothing to compare with: make bench BASELINE=set writes it\n", o.baseline)
	}
	for _, row := range report.Worse(baseline) {
		fmt.Fprintln(stdout, "worse than the baseline:", row)
	}
	return nil
}

func parse(args []string, stderr io.Writer) (*bench, *options, error) {
	b, o := new(bench), &options{rows: map[int]bool{}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	for _, dir := range []struct {
		at         *string
		name, text string
	}{
		{&b.images, "images", "`DIRECTORY` with the images"},
		{&b.rootfs, "rootfs", "`DIRECTORY` with a Debian root file system"},
		{&b.tools, "tools", "`DIRECTORY` with a Debian 13 with ukify and mkfs.erofs"},
		{&b.chroot, "chroot", "`DIRECTORY` with a Debian 13 with initramfs-tools and dracut"},
		{&b.bin, "bin", "`DIRECTORY` with the project's programs"},
		{&b.key, "key", "`DIRECTORY` with a release key"},
		{&b.out, "out", "`DIRECTORY` for the results"},
	} {
		f.StringVar(dir.at, dir.name, "", dir.text)
	}
	f.StringVar(&b.booster, "booster", "", "`DIRECTORY` with booster's generator and init, where it could be had")
	f.BoolVar(&b.noGrowth, "no-growth", false, "leave out how costs grow with the image")
	rows := f.String("rows", "", "measure only these `NUMBERS`, such as 1,4")
	f.IntVar(&o.runs, "runs", 5, "of each side, at least 5")
	quick := f.Bool("quick", false, "fewer than five runs are enough, for a quick look")
	f.BoolVar(&o.markdown, "markdown", false, "print a table for a document")
	f.BoolVar(&o.show, "show", false, "measure nothing: print what was measured")
	f.StringVar(&o.baseline, "baseline", "", "`FILE` with earlier ratios: say what became worse")
	f.BoolVar(&o.settle, "set-baseline", false, "write that file, of what is measured now")
	if err := f.Parse(args); err != nil {
		return nil, nil, err
	}
	if b.out == "" {
		return nil, nil, errors.New("-out is missing")
	}
	if o.runs < 1 || o.runs < 5 && !*quick {
		return nil, nil, fmt.Errorf("%d runs are too few for a median without -quick", o.runs)
	}
	for _, number := range strings.FieldsFunc(*rows, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil, nil, fmt.Errorf("-rows: %w", err)
		}
		o.rows[n] = true
	}
	return b, o, nil
}

// measure adds what is selected to the report.
func (b *bench) measure(ctx context.Context, report *measure.Report, o *options, log io.Writer) (err error) {
	for _, dir := range []*string{&b.images, &b.rootfs, &b.tools, &b.chroot, &b.bin, &b.key, &b.out} {
		if *dir == "" {
			return errors.New("a directory is missing: see -help")
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	if err := b.fits(o); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp(b.out, "work-"); err != nil {
		return err
	}
	defer func() {
		for _, directory := range append(b.rooms, b.work) {
			err = errors.Join(err, os.RemoveAll(directory))
		}
	}()
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	var jobs []measure.Job
	var growths []measure.Growth
	var failed error
	for _, p := range b.parts() {
		if !slices.ContainsFunc(p.rows, o.wants) {
			continue
		}
		j, g, err := p.plan(ctx)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("rows %v: %w", p.rows, err))
		}
		jobs, growths = append(jobs, j...), append(growths, g...)
	}
	results, err := measure.Run(ctx, jobs, growths, measure.Options{Runs: o.runs, Commit: said(ctx, "git", "rev-parse", "--short=12", "HEAD"), Log: log})
	report.Machine = machine()
	report.Tools = b.versions(ctx)
	report.Add(results)
	return errors.Join(failed, err)
}

// growthRoom is what the images of up to 4 GiB and all that is made of them take, in
// bytes.
const growthRoom = 55 << 30

// fits refuses a disk that would be full in the middle of it all.
func (b *bench) fits(o *options) error {
	if b.noGrowth || !o.wants(3) && !o.wants(12) && !o.wants(4) && !o.wants(5) {
		return nil
	}
	var s unix.Statfs_t
	if err := unix.Statfs(b.out, &s); err != nil {
		return fmt.Errorf("%s: %w", b.out, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free < growthRoom {
		return fmt.Errorf("%s has %d GB free, and images of up to 4 GiB take %d: make room, or leave them out (-no-growth; make bench GROWTH=no)",
			b.out, free/1e9, int64(growthRoom)/1e9)
	}
	return nil
}

// A part plans what some rows measure, and makes what that needs.
type part struct {
	rows []int
	plan func(context.Context) ([]measure.Job, []measure.Growth, error)
}

func (b *bench) parts() []part {
	return []part{
		{[]int{1}, b.verity},
		{[]int{2}, b.uki},
		{[]int{3, 12}, b.image},
		{[]int{4}, b.archive},
		{[]int{5}, b.fullUpdate},
		{[]int{6}, b.update},
		{[]int{7}, b.initramfsSizes},
		{[]int{8, 9}, b.boot},
		{[]int{10, 11}, b.goBenchmarks},
	}
}

func (b *bench) chart(report *measure.Report) error {
	f, err := os.Create(filepath.Join(b.out, "bench.svg"))
	if err != nil {
		return err
	}
	return errors.Join(report.Chart(f), f.Close())
}

// machine says on what was measured.
func machine() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores, %s", model, runtime.NumCPU(), runtime.Version())
}

// said is the first line that a program prints; for a report, so that a program
// that is missing is not an error.
func said(ctx context.Context, name string, args ...string) string {
	text, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	return line
}
