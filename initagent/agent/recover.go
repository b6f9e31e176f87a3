package agent

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"halogenos.internal/initagent/console"
)

// recover opens the recovery console: a shell on every console, with nothing in
// reach that was not typed in. Leaving one of them restarts the machine.
func (a *Agent) recover(reason string) error {
	a.Log.Say("RECOVERY: %s", reason)
	// Whatever the TPM releases to the initramfs phase, it no longer does.
	if err := a.TPM.Phase("recovery"); err != nil {
		a.Log.Say("no console: the TPM could not be told that the boot has ended: %v", err)
		return errors.Join(err, a.restart())
	}
	a.Log.Say("the boot has stopped, and nothing was lost. `help` lists the commands; `exit` restarts the machine.")
	shellPath, err := exec.LookPath("/bin/gosh")
	if err != nil {
		return errors.Join(err, a.restart())
	}
	var once sync.Once
	left := make(chan error, 1)
	for _, tty := range console.Terminals() {
		go func() {
			err := shell(shellPath, tty)
			once.Do(func() { left <- err })
		}()
	}
	if err := <-left; err != nil {
		a.Log.Say("the recovery console ended: %v", err)
	}
	return a.restart()
}

// restart waits long enough for what is on the screen to be read.
func (a *Agent) restart() error {
	a.Log.Say("restarting in 10 seconds")
	time.Sleep(10 * time.Second)
	return a.Power.Reboot()
}

func shell(path, tty string) error {
	f, err := os.OpenFile(tty, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
	cmd.Env = []string{"PATH=/bin", "HOME=/", "TERM=linux"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return cmd.Run()
}
