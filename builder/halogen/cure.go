package main

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// cures are the ways out of what a system call says and nobody else explains.
var cures = []struct {
	err  error
	text string
}{
	{syscall.ENOSPC, "make room on that file system, or name a directory on another one"},
	{syscall.EDQUOT, "make room in your quota, or name a directory on another file system"},
	{syscall.EROFS, "the file system is mounted read-only: name a directory on another one"},
	{syscall.ENOTDIR, "something above it is a file: name another place"},
	{syscall.EISDIR, "it is a directory: name a file in it"},
	{syscall.ENAMETOOLONG, "give it a shorter name"},
	{syscall.EMFILE, "raise the limit of open files (ulimit -n)"},
	{syscall.ENOMEM, "give the machine more memory, or swap"},
	{fs.ErrPermission, "run this as root, or as a user who may do this"},
	{fs.ErrNotExist, "check the name"},
	{fs.ErrExist, "remove it, or name another place"},
	{context.DeadlineExceeded, "try again"},
}

// fromHere reports whether an error is about a name that starts at the current
// directory: not one in a root file system, nor one that was put together.
func fromHere(err error) bool {
	e, ok := errors.AsType[*fs.PathError](err)
	return ok && !filepath.IsAbs(e.Path) && slices.Contains([]string{"open", "stat", "lstat"}, e.Op)
}

// cure is the way out of an error that ends with what a system call said; empty for
// one that goes on, or is no such.
func cure(err error) string {
	for _, c := range cures {
		if !errors.Is(err, c.err) {
			continue
		}
		errno, ok := errors.AsType[syscall.Errno](err)
		if strings.HasSuffix(err.Error(), c.err.Error()) || ok && strings.HasSuffix(err.Error(), errno.Error()) {
			if c.err == fs.ErrNotExist && fromHere(err) {
				return ": " + c.text + ", which starts at the current directory"
			}
			return ": " + c.text
		}
	}
	return ""
}
