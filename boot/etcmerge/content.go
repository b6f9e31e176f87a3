package etcmerge

import (
	"cmp"
	"slices"
	"strings"
)

// mergeFile merges two files of the same type, which are not directories.
func (p *planner) mergeFile(b, t, o *file) error {
	if b != nil && b.Type != o.Type {
		b = nil
	}
	c, err := p.content(b, t, o)
	if err != nil {
		return err
	}
	merged, clashes, err := p.metadata(b, t, o, c.from != FromImage)
	if err != nil {
		return err
	}
	p.noteLost(t, &merged)
	if len(clashes) > 0 {
		p.clash(o.path, "", stateTree, strings.Join(clashes, "; "))
		c.clashes = true
	}
	change := Change{Path: o.path, Reason: c.reason, From: c.from, Content: c.text}
	switch c.from {
	case FromUpper:
		signed(&merged, o.Entry)
		change.Action = Keep
		if !metadataOf(&merged).equal(metadataOf(o.Entry)) {
			change.Action = Merge
		}
	case FromImage:
		if metadataOf(&merged).equal(metadataOf(t.Entry)) && !c.clashes {
			p.take(o.path, c.reason) // see renumber
			return nil
		}
		merged.Size, merged.Target, merged.Rdev, merged.ModTime = t.Size, t.Target, t.Rdev, t.ModTime
		change.Action, change.Reason = Merge, "permissions or owner differ here"
	case FromContent:
		merged.Size = int64(len(c.text))
		if t.ModTime.After(merged.ModTime) {
			merged.ModTime = t.ModTime
		}
		change.Action = Merge
	}
	if c.clashes {
		change.Action = Clash
	}
	if change.Entry = merged; !o.is(Regular) {
		change.From, change.Content = 0, nil
	}
	p.add(change)
	return nil
}

// choice is what becomes of a file's content.
type choice struct {
	from    Source
	text    []byte // FromContent
	reason  string
	clashes bool
}

// content decides for the content of a file; b is nil where it was not one of this type.
func (p *planner) content(b, t, o *file) (choice, error) {
	if a, ok := p.accounts[o.path]; ok {
		return p.accountFile(a, o), nil
	}
	if same, err := p.sameContent(o, t); err != nil || same {
		return choice{from: FromImage, reason: "as in the image"}, err
	}
	if p.notText[o.path] && p.base == nil {
		return p.clashing(o.path, choice{from: FromUpper, reason: notText}), nil
	}
	if p.base == nil {
		return choice{from: FromUpper, reason: "differs from the image; who changed it is not known"}, nil
	}
	if b != nil {
		if same, err := p.sameContent(o, b); err != nil || same {
			return choice{from: FromImage, reason: "changed by the image alone"}, err
		}
		if same, err := p.sameContent(t, b); err != nil {
			return choice{}, err
		} else if same {
			return p.changedHere(t, o)
		}
	}
	if !p.options.Other && slices.Contains(backups, o.path) {
		return choice{from: FromUpper, reason: "a copy of what was here"}, nil
	}
	reason := "changed here and in the image"
	if b == nil {
		reason = "added here and in the image"
	}
	if p.notText[o.path] {
		return p.clashing(o.path, choice{from: FromUpper, reason: notText}), nil
	}
	if b != nil && o.is(Regular) {
		c, err := p.byLine(b, t, o)
		if c.from != 0 || err != nil {
			return c, err
		}
		reason = cmp.Or(c.reason, reason)
	}
	return p.clashing(o.path, choice{from: FromUpper, reason: reason}), nil
}

// clashing lists a choice as a conflict.
func (p *planner) clashing(path string, c choice) choice {
	p.clash(path, "", stateTree, c.reason)
	c.clashes = true
	return c
}

// changedHere is for a file that the image has not changed. Where it may have hidden the
// image's over several images, it counts as changed only as far as it says all that the
// image says.
func (p *planner) changedHere(t, o *file) (choice, error) {
	c := choice{from: FromUpper, reason: "changed here"}
	if !p.options.Masked || !o.is(Regular) || !p.options.Other && (o.path == hostname || slices.Contains(backups, o.path)) {
		return c, nil
	}
	texts, ok, err := p.texts(t, o)
	switch {
	case err != nil:
		return choice{}, err
	case !ok:
		c.reason = "changed here: the image's may never have shown"
		return p.clashing(o.path, c), nil
	case lacks(texts[1], texts[0], texts[0]):
		c.reason = missing
		return p.clashing(o.path, c), nil
	}
	return c, nil
}

// notText is for an account file that programs may read otherwise than it looks.
const notText = "it has control characters, so that nothing of the image's comes in: users or groups may be missing. Remove the characters"

const missing = "lines of the image are missing here, though nobody is known to have deleted them"

// texts reads files that may be merged by line; it reports false where one may not.
func (p *planner) texts(files ...*file) ([][]byte, bool, error) {
	var out [][]byte
	for _, f := range files {
		if f.Size > MaxText {
			return nil, false, nil
		}
		text, ok, err := p.text(f.from, f.path)
		if err != nil || !ok {
			return nil, false, err
		}
		out = append(out, text)
	}
	return out, true, nil
}

// byLine merges text. The choice has no source for what is not a text, too large, or does
// not merge cleanly, and a reason where it was too much.
func (p *planner) byLine(b, t, o *file) (choice, error) {
	texts, ok, err := p.texts(b, t, o)
	if err != nil || !ok {
		return choice{}, err
	}
	text, ok, err := p.budget.mergeText(texts[0], texts[1], texts[2])
	switch {
	case err != nil:
		return choice{}, err
	case p.budget.spent():
		return choice{reason: "changed here and in the image, and too much to merge beside all others"}, nil
	case !ok || len(text) > 2*MaxText:
		return choice{}, nil
	}
	p.budget.content -= len(text)
	c := choice{from: FromContent, text: text, reason: "changes of both merged by line"}
	if p.options.Masked && lacks(text, texts[0], texts[1]) {
		c.reason = missing
		return p.clashing(o.path, c), nil
	}
	return c, nil
}
