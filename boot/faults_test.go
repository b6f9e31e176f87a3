package boot_test

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// named is where a comment says FAULTS: in a test, or elsewhere.
type named struct {
	test  string // package.TestName, empty for a comment outside of a test
	place token.Position
}

var (
	// Numbers with commas between them, of which the last may have cases in parentheses; a line may end in between.
	faultsComment = regexp.MustCompile(`\bFAULTS\s+(\d+(?:,\s*\d+)*)(?:\s+\(([A-Z]\d+(?:,\s*[A-Z]\d+)*)\))?`)
	listSeparator = regexp.MustCompile(`,\s*`)
)

// faultsIn are the numbers that a comment names; a case in parentheses stands for its number.
func faultsIn(comment string) []string {
	var numbers []string
	for _, m := range faultsComment.FindAllStringSubmatch(comment, -1) {
		numbers = append(numbers, listSeparator.Split(m[1], -1)...)
		if m[2] != "" {
			numbers = append(numbers[:len(numbers)-1], listSeparator.Split(m[2], -1)...)
		}
	}
	return numbers
}

// testAround is the test whose body or comment holds pos, as package.TestName.
func testAround(file *ast.File, pos token.Pos) string {
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Recv != nil {
			continue
		}
		start := f.Pos()
		if f.Doc != nil {
			start = f.Doc.Pos()
		}
		if start <= pos && pos <= f.End() && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
			return strings.TrimSuffix(file.Name.Name, "_test") + "." + f.Name.Name
		}
	}
	return ""
}

// namedFaults are the comments of the tree's tests, by the fault that they name.
func namedFaults(t *testing.T) map[string][]named {
	t.Helper()
	faults := map[string][]named{}
	files := token.NewFileSet()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (d.Name() == "out" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, c := range file.Comments {
			for _, number := range faultsIn(c.Text()) {
				faults[number] = append(faults[number], named{testAround(file, c.Pos()), files.Position(c.Pos())})
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return faults
}

// fault is a row of the list.
type fault struct {
	number string
	tests  []string
	line   int
}

// listOfFaults are the rows of qemu-tests/FAULTS.md.
func listOfFaults(t *testing.T) []fault {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "qemu-tests", "FAULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	var list []fault
	for i, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| # ") {
			continue
		}
		if len(cells) != 4 {
			t.Errorf("FAULTS.md:%d: %d columns, want 4", i+1, len(cells))
			continue
		}
		f := fault{number: strings.TrimSpace(cells[0]), line: i + 1}
		for _, name := range quotedTest.FindAllStringSubmatch(cells[3], -1) {
			f.tests = append(f.tests, name[1])
		}
		if none := strings.TrimSpace(cells[3]) == "**no test**"; none == (len(f.tests) > 0) {
			t.Errorf("FAULTS.md:%d: the last column names no tests, and is not **no test**: %s", i+1, cells[3])
		}
		list = append(list, f)
	}
	return list
}

var quotedTest = regexp.MustCompile("`([a-z0-9]+\\.(?:Test|Fuzz)[A-Za-z0-9]+)`")

// Every fault that a comment names is on the list, and every test that the list
// names has such a comment. With -v it says which tests each fault has.
func TestFaults(t *testing.T) {
	comments := namedFaults(t)
	listed := map[string]bool{}
	next := 1
	for _, f := range listOfFaults(t) {
		if listed[f.number] {
			t.Errorf("FAULTS.md:%d: %s is there twice", f.line, f.number)
		}
		listed[f.number] = true
		if n, err := strconv.Atoi(f.number); err == nil {
			if n != next {
				t.Errorf("FAULTS.md:%d: %d follows %d", f.line, n, next-1)
			}
			next = n + 1
		}
		var tests []string
		for _, c := range comments[f.number] {
			tests = append(tests, cmp.Or(c.test, c.place.String()))
		}
		if testing.Verbose() {
			t.Log(f.number, strings.Join(tests, " "))
		}
		for _, test := range f.tests {
			if !slices.Contains(tests, test) {
				t.Errorf("FAULTS.md:%d: no comment of %s names fault %s", f.line, test, f.number)
			}
		}
		if len(f.tests) == 0 && len(tests) > 0 {
			t.Errorf("FAULTS.md:%d: no test is listed for fault %s, and %s names it", f.line, f.number, tests[0])
		}
	}
	if next < 100 {
		t.Errorf("only %d faults were found", next-1)
	}
	for number, places := range comments {
		if !listed[number] {
			t.Errorf("%s names fault %s, which is not in qemu-tests/FAULTS.md", places[0].place, number)
		}
	}
}
