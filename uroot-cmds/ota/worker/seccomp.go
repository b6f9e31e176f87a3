package worker

import (
	"errors"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// calls are the system calls that the worker makes: those of Go's runtime, of
// reading and writing files, and of connections. Some exist on one architecture
// alone.
var (
	runtimeCalls = []string{
		"brk", "clock_gettime", "clock_nanosleep", "clone", "exit", "exit_group", "futex", "getegid", "geteuid", "getgid", "getpid", "getrandom",
		"gettid", "gettimeofday", "getuid", "madvise", "mincore", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "prctl", "restart_syscall",
		"rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "set_robust_list", "sigaltstack", "tgkill", "time",
	}
	fileCalls = []string{
		"close", "copy_file_range", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "fadvise64", "fallocate", "fcntl", "fdatasync",
		"fstat", "fsync", "ftruncate", "getcwd", "getdents64", "lseek", "mkdirat", "newfstatat", "openat", "pipe2", "pread64", "preadv", "pwrite64",
		"pwritev", "read", "readlinkat", "readv", "renameat", "renameat2", "sendfile", "splice", "statx", "sync_file_range", "unlinkat", "write", "writev",
	}
	webCalls = []string{
		"bind", "connect", "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket",
	}
)

// restrictCalls has the kernel refuse all other system calls, on all threads.
func restrictCalls(n needs, note func(string)) error {
	if !seccomp.Supported() {
		note("the kernel has no seccomp: which system calls the fetch may make is not limited (CONFIG_SECCOMP_FILTER)")
		return nil
	}
	filters, err := filtersFor(n)
	if err != nil {
		return err
	}
	for _, policy := range filters {
		if err := seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
			return err
		}
	}
	return nil
}

// filtersFor are the filters, all of which a call must pass. Conditions on arguments
// are in filters of their own, since the library's code for a condition leaves
// the argument where the next comparison looks for the call's number. The list
// comes last: it refuses seccomp itself.
func filtersFor(n needs) ([]seccomp.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	list := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	wanted := append(append([]string{}, runtimeCalls...), fileCalls...)
	if n.web {
		wanted = append(wanted, webCalls...)
	}
	for _, name := range wanted {
		if _, ok := info.SyscallNames[name]; ok {
			list.Names = append(list.Names, name)
		}
	}
	if len(list.Names) < len(wanted)-8 {
		return nil, errors.New("the library does not know the system calls of this architecture")
	}
	// A C library asks for clone3 first, whose flags no filter sees, and takes this
	// for an older kernel.
	without := seccomp.SyscallGroup{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)}
	return []seccomp.Policy{
		// IP alone: no local sockets, no netlink, no packets, no other protocol over IP.
		refuse("socket",
			[]seccomp.Condition{{Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_INET}, {Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_INET6}},
			[]seccomp.Condition{
				{Argument: 2, Operation: seccomp.NotEqual, Value: unix.IPPROTO_IP}, {Argument: 2, Operation: seccomp.NotEqual, Value: unix.IPPROTO_TCP},
				{Argument: 2, Operation: seccomp.NotEqual, Value: unix.IPPROTO_UDP},
			}),
		// Threads, and no processes or namespaces.
		refuse("clone", []seccomp.Condition{{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_THREAD}}),
		// Go's runtime names its memory.
		refuse("prctl", []seccomp.Condition{{Argument: 0, Operation: seccomp.NotEqual, Value: unix.PR_SET_VMA}}),
		{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{without, list}},
	}, nil
}

// refuse refuses one call under any of the conditions. Filters before the last must
// let seccomp and prctl load the next.
func refuse(name string, any ...[]seccomp.Condition) seccomp.Policy {
	g := seccomp.SyscallGroup{Action: seccomp.ActionErrno}
	for _, all := range any {
		g.NamesWithCondtions = append(g.NamesWithCondtions, seccomp.NameWithConditions{Name: name, Conditions: all})
	}
	return seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{g}}
}
