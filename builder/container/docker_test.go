package container

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// daemon is a docker daemon with a directory of its own for all that it writes. It
// has its own mounts and processes, too: what it leaves of them goes with it,
// however the test ends.
type daemon struct {
	dir, driver string
	env         []string
	cmd         *exec.Cmd // nil while it does not run
	ended       chan error
}

// launch hides the machine's directories that docker uses without being
// told, and becomes the daemon.
const launch = `set -eu
mount --make-rprivate /
mount -t proc proc /proc
for place in /run/docker /run/containerd /etc/docker /opt/containerd; do
	mkdir -p "$place" "$0$place"
	mount --bind "$0$place" "$place"
done
exec dockerd "$@"`

// patience is for a busy machine.
const patience = 2 * time.Minute

func (d *daemon) socket() string { return "unix://" + d.dir + "/socket" }

func (d *daemon) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("sh", "-c", launch, d.dir, "--config-file", d.dir+"/daemon.json", "--host", d.socket(), "--pidfile", d.dir+"/pid",
		"--data-root", d.dir+"/data", "--exec-root", d.dir+"/exec", "--storage-driver", d.driver, "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--iptables=false", "--bridge=none")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.cmd, d.ended = cmd, make(chan error, 1)
	go func() { d.ended <- cmd.Wait() }()
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		client := exec.CommandContext(t.Context(), "docker", "version")
		client.Env = d.env
		out, err := client.CombinedOutput()
		if err == nil {
			return
		}
		select {
		case err := <-d.ended:
			d.cmd = nil
			t.Fatalf("docker's daemon ended: %v\n%s", err, tail(log.Name()))
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("docker's daemon does not answer: %v\n%s\n%s", err, out, tail(log.Name()))
		}
	}
}

// stop ends the daemon, and with it whatever it runs.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-d.ended:
		return err
	case <-time.After(patience):
		return errors.Join(errors.New("docker's daemon does not end"), cmd.Process.Kill(), <-d.ended)
	}
}

func tail(log string) []byte {
	text, _ := os.ReadFile(log)
	return text[max(0, len(text)-4000):]
}

// useDocker gives a build a docker daemon of its own.
func (b *builder) useDocker(t *testing.T) {
	dir := filepath.Join(b.dir, "docker")
	b.env = append(b.env, "DOCKER_HOST=unix://"+dir+"/socket", "DOCKER_CONFIG="+dir+"/client", "DOCKER_CONTEXT=")
	d := &daemon{dir: dir, driver: "vfs", env: b.env}
	if driver(t) == "overlay" {
		d.driver = "overlay2"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/daemon.json", []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.shim(t, "docker", `case $1 in
rm) exit 0 ;;
run) for word; do shift; [ "$word" = --rm ] || set -- "$@" "$word"; done ;;
esac`)
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("stop docker: %v", err)
		}
	})
	d.start(t)
	b.planting = []string{"docker", "build"}
	b.wake, b.rest = d.start, d.stop
	b.export = func(t *testing.T) {
		t.Helper()
		script := fmt.Sprintf(`set -eu
docker ps --all --quiet --no-trunc >%[1]s/containers
for c in $(cat %[1]s/containers); do docker inspect $c; docker logs $c; done >%[1]s/inspected 2>&1
docker history --no-trunc %[2]s >%[1]s/history
docker save --output %[1]s/exported.tar %[2]s`, b.dir, "localhost/halogen-builder:latest")
		if out, err := b.command(t.Context(), "/", "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("export the image: %v\n%s", err, out)
		}
		// What is searched has the container in which the release was made.
		for name, want := range map[string]string{"inspected": "/run/secrets/release-key", "history": "make-release", "containers": ""} {
			if text := string(read(t, filepath.Join(b.dir, name))); text == "" || !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", name, want, text)
			}
		}
	}
}
