package agent

import "halogenos.internal/initagent/console"

// listen begins to notice that somebody asks for the recovery console. It waits
// for nobody: whoever wants it presses the key at any time until the system takes
// over.
func (a *Agent) listen() {
	a.listener = a.Person.Listen()
	a.Log.Say("press %c for the recovery console", console.Key)
}

// observePerson looks whether the key was pressed.
func (a *Agent) observePerson() {
	if a.listener == nil {
		return
	}
	a.facts.ConsoleAsked = a.facts.ConsoleAsked || a.listener.Asked()
}

// stopListening leaves the terminals to what a step asks there, or to what comes
// after the boot.
func (a *Agent) stopListening() {
	if a.listener != nil {
		a.listener.Close()
		a.listener = nil
	}
}
