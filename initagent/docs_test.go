package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declared are the functions, methods, constants and variables of the tree, as
// package.Name and package.Type.Method.
func declared(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	files := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (d.Name() == "out" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				names[strings.TrimSuffix(file.Name.Name, "_test")+"."+receiver(f)+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// receiver is the type of a method, with a dot behind it; "" for a function.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	kind := f.Recv.List[0].Type
	if star, ok := kind.(*ast.StarExpr); ok {
		kind = star.X
	}
	if name, ok := kind.(*ast.Ident); ok {
		return name.Name + "."
	}
	return ""
}

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	inGo     = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[A-Z]\w*)?\.[A-Za-z]\w*$`)
	fileName = regexp.MustCompile(`^[a-z0-9/_-]+/[A-Za-z0-9_.-]+\.(md|go)$`)
)

// notGo are the files that the documents name in code font, which look like Go.
var notGo = map[string]bool{"staged.json": true, "boot.json": true, "state.conf": true, "loader.conf": true}

// The functions, tests and files that the documents about trust name are there, and
// every row of a table that claims something names a test or says that none shows it.
func TestTrustDocuments(t *testing.T) {
	names := declared(t, "..")
	for _, document := range []string{"TRUST.md", "THREATS.md", "../qemu-tests/MACHINES.md"} {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		found, tests := 0, 0
		for i, line := range strings.Split(string(text), "\n") {
			shown := strings.Contains(line, "**not shown**")
			for _, q := range quoted.FindAllStringSubmatch(line, -1) {
				name := q[1]
				switch {
				case fileName.MatchString(name):
					if _, err := os.Stat(filepath.Join("..", name)); err != nil {
						t.Errorf("%s:%d: %v", document, i+1, err)
					}
				case inGo.MatchString(name) && !notGo[name]:
					found++
					if !names[name] && !strings.HasPrefix(name, "package.") {
						t.Errorf("%s:%d: there is no %s", document, i+1, name)
					}
					if strings.Contains(name, ".Test") || strings.Contains(name, ".Fuzz") {
						shown = true
						tests++
					}
				}
			}
			row := strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| Input ") && !strings.HasPrefix(line, "| Promise ") && !strings.HasPrefix(line, "| Machine ")
			if row && !shown {
				t.Errorf("%s:%d: names no test, and does not say that none shows it: %.60s", document, i+1, line)
			}
		}
		if found < 20 || tests < 10 {
			t.Errorf("%s: only %d names and %d tests were found", document, found, tests)
		}
	}
}
