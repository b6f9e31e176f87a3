package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"halogenos.internal/boot/healthignore"
)

// said is a Run that prints what the real tools have printed, from testdata.
func said(t *testing.T, system, moment string) Run {
	return func(_ context.Context, program string, args ...string) ([]byte, error) {
		if slices.Contains(args, displayManager) {
			return nil, nil
		}
		ending := map[string]string{"systemctl list-jobs": "jobs", "systemctl list-units": "units", "systemctl show": "show", "rc-status --nocolor": "ini"}[program+" "+args[0]]
		if ending == "" {
			t.Fatalf("%s %q is run", program, args)
		}
		if program == "rc-status" && !slices.Equal(args[len(args)-3:], []string{"sysinit", "boot", "default"}) {
			t.Errorf("rc-status %q", args)
		}
		return os.ReadFile(filepath.Join("testdata", system, moment+"."+ending))
	}
}

// make a file or, with a / at its end, a directory.
func put(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, "/") {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	} else if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What systemctl 257 and rc-status 0.45 have printed while a system started in which
// one daemon could not start and one ended again and again.
func TestLook(t *testing.T) {
	for _, c := range []struct {
		system, moment, manager string
		files                   []string
		want                    Look
	}{
		{"systemd-257", "starting", "systemd", []string{"run/systemd/system/"}, Look{Failed: []string{"broken.service"}, Starting: []string{"slow.service"}}},
		{"systemd-257", "settled", "systemd", []string{"run/systemd/system/"}, Look{Failed: []string{"broken.service"}, Restarting: []string{"crashing.service"}}},
		{"openrc-0.45", "starting", "OpenRC", []string{"run/openrc/softlevel", "run/openrc/rc.starting/"}, Look{Failed: []string{"updated", "broken", "failing"}, Starting: []string{"default"}}},
		{"openrc-0.45", "settled", "OpenRC", []string{"run/openrc/softlevel"}, Look{Failed: []string{"updated", "broken", "crashing", "failing"}}},
	} {
		t.Run(c.system+" "+c.moment, func(t *testing.T) {
			root := t.TempDir()
			for _, name := range c.files {
				put(t, root, name, "default")
			}
			ask, name := Find(root, said(t, c.system, c.moment))
			if name != c.manager {
				t.Fatalf("found %q", name)
			}
			look, err := ask(t.Context())
			if err != nil || !reflect.DeepEqual(*look, c.want) {
				t.Errorf("%+v, %v; want %+v", look, err, c.want)
			}
		})
	}
	if ask, name := Find(t.TempDir(), nil); ask != nil || name != "" {
		t.Errorf("found %q where there is none", name)
	}
}

// HalogenOS's own units count neither as failed nor as starting, and what is not a name is
// passed over.
func TestNotCounted(t *testing.T) {
	failed, restarting := unitsIn("otad.service loaded failed failed x\nhalogen-setup.service loaded failed failed x\notad.socket loaded failed failed x\nota-restart.service loaded failed failed x\nota-restart.timer loaded failed failed x\nota-fetch.service loaded activating auto-restart Fetch\n" +
		"ota-health.service loaded failed failed Health\n\x1b[0m loaded failed failed x\nlonely\n" +
		`dev-disk-by\x2duuid-1.swap loaded failed failed Swap` + "\n")
	if !slices.Equal(failed, []string{`dev-disk-by\x2duuid-1.swap`}) || restarting != nil {
		t.Errorf("failed %q, restarting %q", failed, restarting)
	}
	if jobs := jobsIn("No jobs running.\n1 ota-fetch.service start running\n2 a.service stop running\n3 b.service restart running\n4 c.service start waiting\n"); !slices.Equal(jobs, []string{"b.service"}) {
		t.Errorf("jobs %q", jobs)
	}
	look := servicesIn("[default]\na =  crashed \nb =  unsupervised \nc =  starting \nd =  inactive \ne = scheduled\nf =  started 00:00:01 (0)\n")
	if !slices.Equal(look.Failed, []string{"a", "b"}) || !slices.Equal(look.Starting, []string{"c"}) {
		t.Errorf("%+v", look)
	}
}

// Of the units that failed, those that are made while the system runs are left out, and
// mounts of a network are told by their type, their options and what they belong to.
func TestDescribe(t *testing.T) {
	answers := map[string]string{
		"list-jobs": "",
		"list-units": "run-u7.service loaded failed failed /bin/false\nrun-u8.service loaded activating auto-restart x\na.service loaded failed failed A\n" +
			"b.service loaded activating auto-restart B\nnas.mount loaded failed failed N\nsmb.mount loaded failed failed S\niscsi.mount loaded failed failed I\n" +
			"auto.automount loaded failed failed A\nssh.mount loaded failed failed F\ndata.mount loaded failed failed D\nnfs.service loaded failed failed N\n",
		"show": "Id=run-u7.service\nTransient=yes\n\nId=run-u8.service\nTransient=yes\n\nId=a.service\nType=nfs\nTransient=no\n\nId=b.service\nTransient=no\n\n" +
			"Id=nas.mount\nType=nfs4\nOptions=rw\nTransient=no\n\nId=smb.mount\nType=fuse.sshfs\n\nId=iscsi.mount\nType=ext4\nOptions=rw,_netdev,noatime\n\n" +
			"Id=auto.automount\nBefore=umount.target remote-fs.target\n\nId=ssh.mount\nType=xfs\nRequiredBy=remote-fs.target\n\n" +
			"Id=data.mount\nType=ext4\nOptions=rw,x_netdev\nBefore=local-fs.target\n\nId=nfs.service\nBefore=remote-fs.target\n",
	}
	var asked []string
	ask := systemd(func(_ context.Context, _ string, args ...string) ([]byte, error) {
		if slices.Contains(args, displayManager) {
			return nil, nil
		}
		if args[0] == "show" {
			asked = args[slices.Index(args, "--")+1:]
		}
		return []byte(answers[args[0]]), nil
	}, t.TempDir())
	look, err := ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Look{
		Failed:     []string{"a.service", "nas.mount", "smb.mount", "iscsi.mount", "auto.automount", "ssh.mount", "data.mount", "nfs.service"},
		Restarting: []string{"b.service"}, Network: []string{"nas.mount", "smb.mount", "iscsi.mount", "auto.automount", "ssh.mount"},
	}
	if !reflect.DeepEqual(*look, want) || len(asked) != 11 {
		t.Errorf("%+v, asked for %q", look, asked)
	}
	answers["list-units"] = ""
	asked = nil
	if look, err := ask(t.Context()); err != nil || !reflect.DeepEqual(*look, Look{}) || asked != nil {
		t.Errorf("%+v, %v, asked for %q", look, err, asked)
	}
}

// The name of a runlevel is not an option of rc-status.
func TestRunlevel(t *testing.T) {
	for _, level := range []string{"", "--all", "a b", "a\nb"} {
		root := t.TempDir()
		put(t, root, "run/openrc/softlevel", level)
		ask, _ := Find(root, func(context.Context, string, ...string) ([]byte, error) { return nil, nil })
		if _, err := ask(t.Context()); err == nil {
			t.Errorf("%q is taken", level)
		}
	}
}

// A moment is what a manager says from then on.
type moment struct {
	at   time.Duration
	look Look
	err  error
}

func follow(t *testing.T, moments ...moment) (start *Start, took time.Duration, first []string, err error) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ask := Manager(func(context.Context) (*Look, error) {
			now := moments[0]
			for _, m := range moments {
				if time.Since(began) >= m.at {
					now = m
				}
			}
			return &now.look, now.err
		})
		start, err = ask.Settle(t.Context(), func(failed []string) { first = failed })
		took = time.Since(began)
	})
	return start, took, first, err
}

func TestSettle(t *testing.T) {
	a, b := []string{"a.service"}, []string{"b.service"}
	var loop []moment // started for 3 s, and waiting for 5
	for at := time.Duration(0); at < 5*time.Minute; at += 8 * time.Second {
		loop = append(loop, moment{at: at}, moment{at: at + 3*time.Second, look: Look{Restarting: b}})
	}
	lost := errors.New("no answer")
	for _, c := range []struct {
		name    string
		moments []moment
		want    Start
		took    time.Duration
	}{
		{"nothing fails", []moment{{}}, Start{}, 10 * time.Second},
		{"it fails a moment later", []moment{{}, {at: 5 * time.Second, look: Look{Failed: a}}}, Start{Failed: a}, 10 * time.Second},
		{"something is still starting", []moment{{look: Look{Starting: b}}, {at: time.Minute, look: Look{Failed: b}}}, Start{Failed: b}, 68 * time.Second},
		{"it never ends to start", []moment{{look: Look{Starting: b, Failed: a}}}, Start{Failed: a, Starting: b}, bound},
		{"it needs a second attempt", []moment{{look: Look{Restarting: a}}, {at: 4 * time.Second}}, Start{}, 12 * time.Second},
		{"it ends again and again", loop, Start{Failed: b}, bound},
		{"it is given up", []moment{{look: Look{Restarting: a}}, {at: 20 * time.Second, look: Look{Failed: a}}}, Start{Failed: a}, 28 * time.Second},
		{"the manager restarts itself", []moment{{err: lost}, {at: 30 * time.Second, look: Look{Failed: a}}}, Start{Failed: a}, 38 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			start, took, _, err := follow(t, c.moments...)
			if err != nil || !slices.Equal(start.Failed, c.want.Failed) || !slices.Equal(start.Starting, c.want.Starting) || took != c.took {
				t.Errorf("%+v, %v after %v; want %+v after %v", start, err, took, c.want, c.took)
			}
		})
	}
	if _, took, _, err := follow(t, moment{err: lost}); !errors.Is(err, lost) || took != bound {
		t.Errorf("%v after %v", err, took)
	}
	if _, _, first, err := follow(t, moment{look: Look{Failed: a}}, moment{at: time.Second}); err != nil || !slices.Equal(first, a) {
		t.Errorf("failed at first: %q, %v", first, err)
	}
}

// A service manager that does not answer is not waited for for ever.
func TestNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ask := Manager(func(ctx context.Context) (*Look, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		_, err := ask.Settle(t.Context(), nil)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "has not answered") || took > bound+oneLook+every {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestJudge(t *testing.T) {
	ignore, err := healthignore.Parse("x", []byte("may-*.service\n"))
	if err != nil {
		t.Fatal(err)
	}
	failed := []string{"new.service", "old.service", "may-fail.service", "new.service"}
	of := func(failed ...string) *Start { return &Start{Failed: failed, Network: []string{"nas.mount"}} }
	have := Judge(of(append(failed, "nas.mount")...), NewRecord(1, "systemd", []string{"old.service", "may-fail.service", "mended.service"}, nil), ignore)
	if want := (Verdict{Counted: []string{"new.service"}, Before: []string{"old.service"}, Excused: []string{"may-fail.service", "nas.mount"}}); !reflect.DeepEqual(have, want) {
		t.Errorf("%+v", have)
	}
	// The name of an instance may be another at each start.
	have = Judge(of("dump@2-77.service", "other@1.service", "dump@2.socket", "dump.service"), NewRecord(1, "systemd", []string{"dump@1-9.service"}, nil), ignore)
	if want := (Verdict{Counted: []string{"dump.service", "dump@2.socket", "other@1.service"}, Before: []string{"dump@2-77.service"}}); !reflect.DeepEqual(have, want) {
		t.Errorf("%+v", have)
	}
	have = Judge(of(failed...), nil, nil)
	if want := (Verdict{Unknown: []string{"may-fail.service", "new.service", "old.service"}}); !reflect.DeepEqual(have, want) {
		t.Errorf("without a record: %+v", have)
	}
	have = Judge(of(failed...), NewRecord(1, "systemd", nil, nil), ignore)
	if len(have.Counted) != 2 {
		t.Errorf("nothing failed before: %+v", have)
	}
}

// However much fails, the record and the messages stay small.
func TestBounds(t *testing.T) {
	var all []string
	for i := range 1000 {
		all = append(all, fmt.Sprintf("%s%03d.service", strings.Repeat("a", 240), i))
	}
	r := NewRecord(1, "systemd", all, nil)
	if len(r.Failed) != maxFailed || !r.Of("systemd") || r.Of("OpenRC") {
		t.Errorf("%d services", len(r.Failed))
	}
	if v := Judge(&Start{Failed: all}, NewRecord(1, "systemd", nil, nil), nil); len(v.Counted) != maxFailed {
		t.Errorf("%d count", len(v.Counted))
	}
	if text := Names([]string{"a", "b"}); text != "a, b" {
		t.Error(text)
	}
	if text := Names(all); len(text) > 2200 || !strings.HasSuffix(text, " and 992 more") {
		t.Error(text)
	}
}
