package notes

import (
	"bytes"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/manifest"
)

const markdownSample = `Urgency: high
Kind: security
Date: 2026-11-29
URL: https://example.org/3
CVE: CVE-2026-1234, CVE-2026-2

# Version 3
The **browser** is
newer, see [the list](https://example.org/list) & <more>.

- one
- two goes
  on
1. first
2) second

The ` + "`end`" + `.
`

func sample(t testing.TB) *Notes {
	t.Helper()
	n, err := FromMarkdown([]byte(markdownSample), "desktop", 3)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMarkdown(t *testing.T) {
	r := sample(t).Releases[0]
	want := Release{Version: 3, Date: 1795910400, Urgency: "high", Security: true, URL: "https://example.org/3", Issues: []string{"CVE-2026-1234", "CVE-2026-2"}, Text: []Part{
		{Paragraph: "Version 3"}, {Paragraph: "The browser is newer, see the list (https://example.org/list) & <more>."},
		{Items: []string{"one", "two goes on"}}, {Items: []string{"first", "second"}, Numbered: true}, {Paragraph: "The end."},
	}}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("%+v\nwant %+v", r, want)
	}
	for text, why := range map[string]string{
		"Kind: urgent\n\nx":                  "want security or feature",
		"Urgency: now\n\nx":                  "want low, medium, high or critical",
		"Kind: feature\nCVE: CVE-1\n\nx":     "one of kind security",
		"CVE: 1234\n\nx":                     "not a CVE number",
		"Date: today\n\nx":                   "not a day",
		"Kind: feature\nKind: security\n\nx": "said twice",
		"Kind: feature\nx":                   "an empty line ends",
		"URL: javascript:x\n\nx":             "not an http or https URL",
		"a\x1b[31m":                          "not printed",
		strings.Repeat("x ", 3000):           "more than 4096",
		strings.Repeat("- x\n", 300):         "more than 200",
		strings.Repeat("x", MaxSize+1):       "more than 65536",
	} {
		if _, err := FromMarkdown([]byte(text), "desktop", 3); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.40q: %v, want %q", text, err, why)
		}
	}
}

// What joins letters and emoji is text; what turns a line is not.
func TestJoined(t *testing.T) {
	n := sample(t)
	n.Releases[0].Text = []Part{{Paragraph: "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f468\u200d\U0001f469"}}
	text, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("read back %+v, %v", got, err)
	}
	n.Releases[0].Text = []Part{{Paragraph: "a\u202eb"}}
	if _, err := n.Encode(); err == nil {
		t.Error("a text that turns a line is taken")
	}
}

func TestEncode(t *testing.T) {
	n := sample(t)
	n.Releases = append(n.Releases, Release{Version: 2, Urgency: "low"}, Release{Version: 1, Urgency: "medium", Security: true, Text: []Part{{Paragraph: "holes"}}})
	text, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("read back %+v, %v\n%s", got, err, text)
	}
	if manifest.IsPage(text) {
		t.Error("who fetches it takes it for a web page")
	}
	if since := n.Since(1, 3); len(since) != 2 || since[0].Version != 3 {
		t.Errorf("since 1: %+v", since)
	}
	if u, security := Summary(n.Since(1, 2)); u != "low" || security {
		t.Errorf("2 is %s, %v", u, security)
	}
	if u, security := Summary(n.Since(0, 3)); u != "high" || !security {
		t.Errorf("all are %s, %v", u, security)
	}
	t.Logf("%s", appstreamcli(text))
}

// appstreamcli is what AppStream's own tool says of metadata, where it is installed.
func appstreamcli(text []byte) []byte {
	tool, err := exec.LookPath("appstreamcli")
	if err != nil {
		return []byte("appstreamcli is not installed, and does not judge this")
	}
	c := exec.Command(tool, "validate", "--no-net", "-")
	c.Stdin = bytes.NewReader(text)
	out, _ := c.CombinedOutput()
	return out
}

// What programs that show software read has the same, and a name.
func TestMetainfo(t *testing.T) {
	n := sample(t)
	signed, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	text, err := n.Metainfo("An <OS>", "Operating system")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", appstreamcli(text))
	head, rest, found := bytes.Cut(text, []byte("  <releases>"))
	if _, same, _ := bytes.Cut(signed, []byte("  <releases>")); !found || !bytes.Equal(rest, same) || !bytes.Contains(head, []byte("<name>An &lt;OS&gt;</name>")) || !bytes.Contains(head, []byte("<summary>Operating system</summary>")) {
		t.Errorf("%s", text)
	}
	if text, err := (&Notes{ImageID: n.ImageID}).Metainfo("x", "y"); err != nil || bytes.Contains(text, []byte("<release ")) {
		t.Errorf("without a release: %s, %v", text, err)
	}
	for _, bad := range []*Notes{{ImageID: "<"}, {ImageID: n.ImageID, Releases: []Release{{}}}} {
		if text, err := bad.Metainfo("x", "y"); err == nil {
			t.Errorf("%+v is taken: %s", bad, text)
		}
	}
}

// A file as distributors have them already.
func TestReleases(t *testing.T) {
	n, err := ParseReleases([]byte(`<?xml version="1.0" encoding="utf-8"?>
<!-- of the release manager -->
<releases>
  <release type="stable" version="4" date="2026-11-20" urgency="critical">
    <url type="details">https://example.org/4</url>
    <description><p>It <em>boots</em> with <code>quiet</code>
      again.</p><ol><li>a</li></ol></description>
    <issues><issue type="generic">77</issue><issue type="cve">CVE-2026-9</issue></issues>
  </release>
  <release version="3" timestamp="1795910400"/>
</releases>`), "desktop")
	if err != nil || len(n.Releases) != 2 || n.ImageID != "desktop" {
		t.Fatalf("%+v, %v", n, err)
	}
	r := n.Releases[0]
	if r.Text[0].Paragraph != "It boots with quiet again." || !r.Security || len(r.Issues) != 1 || r.Urgency != "critical" || n.Releases[1].Urgency != "medium" || n.Releases[1].Date != 1795910400 {
		t.Errorf("%+v", n)
	}
}

func TestHostile(t *testing.T) {
	release := func(s string) string { return "<releases>" + s + "</releases>" }
	for text, why := range map[string]string{
		"":                       "EOF",
		"<releases>":             "EOF",
		"no XML":                 "outside of the element",
		"<html/>":                "not known here",
		release(""):              "notes of 0 releases",
		"<releases/><releases/>": "more than one element",
		`<!DOCTYPE x [<!ENTITY a "b">]>` + release(`<release version="1"/>`):            "declarations",
		release(`<release version="1"><description><p>&a;</p></description></release>`): "entity",
		release(`<release/>`):                                                                  "version",
		release(`<release version="01"/>`):                                                     "version",
		release(`<release version="1" version="1"/>`):                                          "or twice",
		release(`<release version="1" onload="x"/>`):                                           "not known there",
		release(`<release version="1" date="yesterday"/>`):                                     "not a day",
		release(`<release version="1" timestamp="-5"/>`):                                       "before 1970",
		release(`<release version="1"/><release version="1"/>`):                                "newest must come first",
		release(`<release version="1"/><release version="2"/>`):                                "newest must come first",
		release(`<release version="1">text</release>`):                                         "outside of its elements",
		release(`<release version="1"><p>x</p></release>`):                                     "does not belong there",
		release(`<release version="1"><description><p><p>x</p></p></description></release>`):   "does not belong there",
		release(`<release version="1"><description><p></p></description></release>`):           "neither a paragraph nor a list",
		release(`<release version="1"><description><ul><li/></ul></description></release>`):    "an item is empty",
		release(`<release version="1"><description><p>a&#x202e;b</p></description></release>`): "not printed",
		release(`<release version="1"><url>file:///etc/shadow</url></release>`):                "not an http or https URL",
		`<?xml-stylesheet href="x"?>` + release(`<release version="1"/>`):                      "not taken",
		`<x:releases xmlns:x="y"><release version="1"/></x:releases>`:                          "not known here",
		strings.Repeat("<releases>", 20):                                                       "nested deeper",
		release(strings.Repeat(`<release version="1"/>`, 100)):                                 "notes of 100 releases",
		"<component><id>server</id><releases><release version=\"1\"/></releases></component>":  "about server, and not about desktop",
		"<component><id>desktop</id><id>desktop</id></component>":                              "two of <id>",
		"<component><releases><release version=\"1\"/></releases></component>":                 "not valid",
		strings.Repeat(" ", MaxSize+1):                                                         "more than 65536",
	} {
		if _, err := ParseReleases([]byte(text), "desktop"); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.90s: %v, want %q", text, err, why)
		}
	}
	if _, err := Parse([]byte(release(`<release version="1"/>`))); err == nil || !strings.Contains(err.Error(), "not the <component>") {
		t.Errorf("a bare list: %v", err)
	}
}

// What is taken has one form, and can be printed.
func FuzzParse(f *testing.F) {
	text, err := sample(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`<releases><release version="1"><description><p>a<em>b</em>c</p></description></release></releases>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := ParseReleases(text, "desktop")
		if err != nil {
			return
		}
		again(t, n)
	})
}

func FuzzMarkdown(f *testing.F) {
	f.Add([]byte(markdownSample))
	f.Add([]byte("* a\n\n  b\n\nc\n1. d"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := FromMarkdown(text, "desktop", 3)
		if err != nil {
			return
		}
		again(t, n)
	})
}

func again(t *testing.T, n *Notes) {
	text, err := n.Encode()
	if err != nil {
		if strings.Contains(err.Error(), "more than") {
			return // escaping makes it longer
		}
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	second, err := got.Encode()
	if err != nil || !bytes.Equal(text, second) {
		t.Fatalf("%v\n%s\n%s", err, text, second)
	}
}
