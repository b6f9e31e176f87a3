package release

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"halogenos.internal/builder/files"
	"halogenos.internal/builder/image"
)

const maxPaper = 256 << 20 // bytes

// papers are the files of a build that say what it is made of, with what their
// names on the server end in. Machines do not read them.
var papers = []struct{ file, suffix string }{
	{image.BillFile, ".cdx.json"},
	{image.ProvenanceFile, ".intoto.json"},
}

// writePapers puts the bill of materials and the provenance beside the archive,
// each with its signature. A build without them has none.
func (p *publisher) writePapers(dir string) error {
	for _, paper := range papers {
		text, err := files.Read(filepath.Join(p.Build, paper.file), maxPaper)
		if errors.Is(err, fs.ErrNotExist) {
			p.Note("the build has no %s", paper.file)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", paper.file, err)
		}
		name := p.build.release.Version.String() + paper.suffix
		if err := writeFile(dir, name, text); err != nil {
			return err
		}
		if p.signer == nil {
			continue
		}
		signature, err := p.signer.Sign(bytes.NewReader(text), p.Now)
		if err != nil {
			return fmt.Errorf("sign %s: %w", name, err)
		}
		if err := writeFile(dir, name+".pgp", signature); err != nil {
			return err
		}
	}
	return nil
}
