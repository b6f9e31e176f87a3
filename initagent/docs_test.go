package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
)

// declared are the functions, methods and types of the tree, as package.Name and
// package.Type.Method.
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
			pkg := strings.TrimSuffix(file.Name.Name, "_test") + "."
			switch d := decl.(type) {
			case *ast.FuncDecl:
				names[pkg+receiver(d)+d.Name.Name] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if kind, ok := spec.(*ast.TypeSpec); ok {
						names[pkg+kind.Name.Name] = true
					}
				}
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
	inGo     = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[A-Za-z]\w*)?\.[A-Za-z]\w*$`)
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

// chapters are the READMEs, and the walks that each has.
var chapters = map[string][]string{
	"README.md": nil, "CONTRIBUTING.md": nil, "qemu-tests/README.md": nil, "qemu-tests/bench/README.md": nil, "boot/README.md": nil,
	"initagent/README.md":  {"a boot", "a TPM record", "a recovery key"},
	"uroot-cmds/README.md": {"an update"},
	"builder/README.md":    {"a release"},
}

var (
	// The type of a method may be one that is not exported.
	inWalk = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[A-Za-z]\w*)?\.[A-Za-z]\w*$`)
	// Names of files look the same.
	fileEnding = regexp.MustCompile(`\.(conf|dep|efi|env|erofs|go|img|index|json|jsonl|log|mod|openrc|pgp|raw|service|sh|sysv|target|timer)$`)
	treePath   = regexp.MustCompile(`^(boot|builder|initagent|qemu-tests|uroot-cmds)/[A-Za-z0-9_./-]+$`)
)

// What the chapters name in code font is there: files and directories of the tree,
// functions, methods and types; and each walk names a path through them.
func TestChapters(t *testing.T) {
	names := declared(t, "..")
	for chapter, walks := range chapters {
		text, err := os.ReadFile(filepath.Join("..", chapter))
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		walk := ""
		for i, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, "#") {
				_, walk, _ = strings.Cut(line, "A walk: ")
			}
			for _, q := range quoted.FindAllStringSubmatch(line, -1) {
				switch name := q[1]; {
				case treePath.MatchString(name) && !strings.Contains(name, "NAME"):
					if _, err := os.Stat(filepath.Join("..", name)); err != nil {
						t.Errorf("%s:%d: %v", chapter, i+1, err)
					}
				case inWalk.MatchString(name) && !fileEnding.MatchString(name):
					if !names[name] {
						t.Errorf("%s:%d: there is no %s", chapter, i+1, name)
					}
					counts[walk]++
				}
			}
		}
		for _, w := range walks {
			if counts[w] < 8 {
				t.Errorf("%s: the walk %q names %d functions, want 8 at least", chapter, w, counts[w])
			}
		}
	}
}

// Each step of the boot is explained in the chapter, under its name.
func TestSteps(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := 0
	for k := bootflow.Kind(0); !strings.HasPrefix(k.String(), "step-"); k++ {
		kinds++
		if !strings.Contains(string(text), "\n| `"+k.String()+"` | ") {
			t.Errorf("README.md has no row for the step %s", k)
		}
	}
	if kinds < 20 {
		t.Errorf("there are only %d steps", kinds)
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	inTitle = regexp.MustCompile("[^a-z0-9 _-]")
)

// Links between the documents lead to a file of the tree, and to a heading of it.
func TestLinks(t *testing.T) {
	found := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (d.Name() == "out" || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			found++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			content, err := os.ReadFile(target)
			if err != nil {
				if info, serr := os.Stat(target); serr != nil || !info.IsDir() {
					t.Errorf("%s: the link %s: %v", path, m[1], err)
				}
				continue
			}
			if anchor != "" && !slices.Contains(anchors(string(content)), anchor) {
				t.Errorf("%s: the link %s: %s has no such heading", path, m[1], target)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 15 {
		t.Errorf("only %d links were found", found)
	}
}

// anchors are those of a document's headings, as forges make them.
func anchors(text string) (all []string) {
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(inTitle.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return all
}
