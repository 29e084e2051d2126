// Package docs holds the documentation. Its tests keep the pages true: links resolve, command lines
// exist, and pages that list what the code has list exactly that.
package docs

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep/api/cinder"
	"github.com/lockstep-dr/lockstep/api/evs"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/nbd"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

const root = ".."

// cliPage is generated from the commands, and a test of cmd/lockstep compares it with them: what it
// says of commands and flags is what they are.
const cliPage = "reference/cli.md"

// pages lists every Markdown file of the project, relative to this directory.
func pages(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "out" || name == "bin" || name == "testdata") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d pages found", len(out))
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var (
	fence    = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```$")
	link     = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	inline   = regexp.MustCompile("`[^`\n]*`")
	heading  = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	notInAID = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the ids of a page's headings, as the usual renderers make them.
func anchors(text string) map[string]bool {
	ids := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		id := notInAID.ReplaceAllString(strings.ToLower(m[1]), "")
		ids[strings.ReplaceAll(id, " ", "-")] = true
	}
	return ids
}

func TestLinksResolve(t *testing.T) {
	links := 0
	for _, page := range pages(t) {
		prose := inline.ReplaceAllString(fence.ReplaceAllString(read(t, page), ""), "")
		for _, m := range link.FindAllStringSubmatch(prose, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			links++
			path, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			info, err := os.Stat(target)
			if err != nil {
				t.Errorf("%s: link %s: %v", page, m[1], err)
				continue
			}
			if anchor != "" && (info.IsDir() || !anchors(read(t, target))[anchor]) {
				t.Errorf("%s: link %s: there is no such heading", page, m[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links found", links)
	}
}

func TestEveryPageIsReachable(t *testing.T) {
	linked := map[string]bool{filepath.Join(root, "README.md"): true}
	all := pages(t)
	for _, page := range all {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			path, _, _ := strings.Cut(m[1], "#")
			linked[filepath.Join(filepath.Dir(page), path)] = true
		}
	}
	for _, page := range all {
		if !linked[page] {
			t.Errorf("no page links to %s", page)
		}
	}
}

// command is what the generated page says of one.
type command struct {
	flags   map[string]bool // long names; true: takes a value
	parent  bool            // other commands are below it
	maxArgs int             // -1: any number
}

var (
	section = regexp.MustCompile(`(?m)^#{2,4} (lockstep[a-z -]*)\n`)
	flagRow = regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\| (\\S+) \\|")
	also    = regexp.MustCompile(`(?m)^Also: (.*)$`)
	usage   = regexp.MustCompile("(?m)^Usage: `(.*)`$")
	flagRef = regexp.MustCompile("`--([a-z-]+)`")
)

func commands(t *testing.T) map[string]command {
	t.Helper()
	text := read(t, cliPage)
	at := section.FindAllStringSubmatchIndex(text, -1)
	all := map[string]command{}
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		name, body := text[m[2]:m[3]], text[m[1]:end]
		c := command{flags: map[string]bool{"help": false}}
		for _, f := range flagRow.FindAllStringSubmatch(body, -1) {
			c.flags[f[1]] = f[2] != "bool"
		}
		if m := also.FindStringSubmatch(body); m != nil {
			for _, f := range flagRef.FindAllStringSubmatch(m[1], -1) {
				c.flags[f[1]] = true // all that are inherited name a cloud
			}
		}
		line := usage.FindStringSubmatch(body)
		if line == nil {
			t.Fatalf("%s: %s has no usage line", cliPage, name)
		}
		for _, word := range strings.Fields(strings.TrimPrefix(line[1], name)) {
			if word == "[flags]" {
				continue
			}
			c.maxArgs++
			if strings.HasSuffix(word, "...") || strings.HasSuffix(word, "...]") {
				c.maxArgs = -1
				break
			}
		}
		all[name] = c
	}
	for name := range all {
		if i := strings.LastIndex(name, " "); i > 0 {
			p := all[name[:i]]
			p.parent = true
			all[name[:i]] = p
		}
	}
	if len(all) < 30 {
		t.Fatalf("%s: only %d commands found", cliPage, len(all))
	}
	return all
}

// invocations finds the lockstep command lines of a shell block, also in $(…) and after && or ;.
func invocations(block string) [][]string {
	block = strings.ReplaceAll(block, "\\\n", " ")
	var out [][]string
	for _, line := range strings.Split(block, "\n") {
		if i := strings.Index(line, " #"); i >= 0 {
			line = line[:i]
		}
		for _, part := range regexp.MustCompile(`\$\(|\)|&&|\|\|?|;`).Split(line, -1) {
			words := split(strings.TrimSpace(part))
			if len(words) > 0 && (words[0] == "lockstep" || words[0] == "bin/lockstep") {
				out = append(out, words[1:])
			}
		}
	}
	return out
}

// split is a shell's splitting into words, with quotes but nothing else.
func split(s string) []string {
	var words []string
	var word strings.Builder
	quote, open := rune(0), false
	for _, r := range s {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t':
			if open || word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteRune(r)
		}
	}
	if open || word.Len() > 0 {
		words = append(words, word.String())
	}
	return words
}

// judge says what is wrong with a command line, "" for nothing.
func judge(all map[string]command, words []string) string {
	name := "lockstep"
	for len(words) > 0 {
		if _, ok := all[name+" "+words[0]]; !ok {
			break
		}
		name, words = name+" "+words[0], words[1:]
	}
	c := all[name]
	args := 0
	for i := 0; i < len(words); i++ {
		flag, isFlag := strings.CutPrefix(words[i], "--")
		if !isFlag {
			args++
			continue
		}
		flag, _, inlined := strings.Cut(flag, "=")
		takesValue, ok := c.flags[flag]
		switch {
		case !ok:
			return name + " has no flag --" + flag
		case takesValue && !inlined:
			if i++; i == len(words) {
				return name + " --" + flag + " has no value"
			}
		}
	}
	if c.maxArgs >= 0 && args > c.maxArgs {
		return name + " takes fewer arguments, or has no such command"
	}
	return ""
}

func TestCommandLinesExist(t *testing.T) {
	all := commands(t)
	found := 0
	for _, page := range pages(t) {
		for _, b := range fence.FindAllStringSubmatch(read(t, page), -1) {
			if b[1] != "sh" {
				continue
			}
			for _, words := range invocations(b[2]) {
				found++
				if wrong := judge(all, words); wrong != "" {
					t.Errorf("%s: lockstep %s: %s", page, strings.Join(words, " "), wrong)
				}
			}
		}
	}
	if found < 60 {
		t.Errorf("only %d command lines found", found)
	}
}

func TestJudgeFindsWrongCommandLines(t *testing.T) {
	all := commands(t)
	for line, ok := range map[string]bool{
		"lockstep group failover shop --yes --wait":               true,
		"lockstep group failover shop --forced":                   false,
		"lockstep group failover shop other":                      false,
		"lockstep group nope shop":                                false,
		"lockstep nope":                                           false,
		"lockstep group list --clouds":                            false,
		"lockstep volume delete a b --yes":                        true,
		`x "$(lockstep volume connect db)" && lockstep node list`: true,
		`x "$(lockstep volume conect db)"`:                        false,
		"lockstep group show shop   # what it does":               true,
	} {
		lines := invocations(line)
		if len(lines) == 0 {
			t.Errorf("%s: no command line found", line)
		}
		wrong := ""
		for _, words := range lines {
			wrong += judge(all, words)
		}
		if (wrong == "") != ok {
			t.Errorf("%s: %q", line, wrong)
		}
	}
}

// rows gives the first cells, in backquotes, of the tables of a part of a page.
func rows(text string) map[string]string {
	out := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 3 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		out[strings.Trim(strings.TrimSpace(cells[1]), "`")] = line
	}
	return out
}

func compare(t *testing.T, what string, page, code map[string]string) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(code)) {
		if _, ok := page[k]; !ok {
			t.Errorf("%s: %s is in the code and not on the page", what, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(page)) {
		if _, ok := code[k]; !ok {
			t.Errorf("%s: %s is on the page and not in the code", what, k)
		}
	}
}

// Every setting is a flag of its daemon, so the generated page tells which there are, and their
// defaults.
func TestConfigurationPageIsComplete(t *testing.T) {
	text := read(t, "reference/configuration.md")
	cli := read(t, cliPage)
	row := regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\| \\S+ \\| (.*?) \\| .* \\|$")
	for _, daemon := range []string{"node", "controller"} {
		_, part, ok := strings.Cut(text, "\n## `lockstep "+daemon+"`\n")
		part, _, _ = strings.Cut(part, "\n## ")
		_, body, found := strings.Cut(cli, "\n### lockstep "+daemon+"\n")
		if !ok || !found {
			t.Fatalf("no section of %s", daemon)
		}
		body = body[:section.FindStringIndex(body)[0]]
		code := map[string]string{}
		for _, m := range row.FindAllStringSubmatch(body, -1) {
			if m[1] != "config" {
				code[strings.ReplaceAll(m[1], "-", "_")] = m[2]
			}
		}
		page := rows(part)
		compare(t, "settings of "+daemon, page, code)
		for key, value := range code {
			if value != "-" && !strings.Contains(page[key], "| `"+value+"` |") {
				t.Errorf("%s of %s: the default is %s, the page says %s", key, daemon, value, page[key])
			}
		}
	}
}

func TestAPIPageIsComplete(t *testing.T) {
	users, err := identity.New(identity.Config{Store: memstore.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	code := map[string]string{}
	for _, rt := range slices.Concat(evs.Routes(nil), cinder.Routes(nil), users.Routes()) {
		if v2, ok := strings.CutPrefix(rt.Path, "/v2/{project_id}/"); ok && isBlockStorage(v2) {
			continue // the page says that version 2 has what version 3 has
		}
		code[rt.Method+" "+rt.Path] = ""
	}
	page := map[string]string{}
	text, _, _ := strings.Cut(read(t, "reference/api-map.md"), "\n## Without a token\n")
	for call, line := range rows(text) {
		if _, path, ok := strings.Cut(call, " "); ok && strings.HasPrefix(path, "/") {
			page[call] = line
		}
	}
	compare(t, "calls", page, code)
}

// isBlockStorage: package cinder has the path under both versions.
func isBlockStorage(path string) bool {
	return slices.ContainsFunc(cinder.Routes(nil), func(rt rest.Route) bool {
		return rt.Path == "/v3/{project_id}/"+path
	})
}

func TestMetricsPageIsComplete(t *testing.T) {
	code := map[string]string{}
	name := regexp.MustCompile(`"(lockstep_[a-z_]+)"`)
	for _, pattern := range []string{"../node/*.go", "../api/*.go", "../replica/*.go", "../control/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			for _, m := range name.FindAllStringSubmatch(read(t, f), -1) {
				code[m[1]] = ""
			}
		}
	}
	reg := prometheus.NewRegistry()
	nbd.NewPrometheusMetrics(reg).Export("v").Connected(0)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		code[f.GetName()] = ""
	}
	compare(t, "metrics", rows(read(t, "reference/metrics.md")), code)
}

func TestWirePageIsComplete(t *testing.T) {
	text, source := read(t, "reference/wire.md"), read(t, "../wire/frame.go")
	constant := regexp.MustCompile(`(?m)^\t(Kind|Status)([A-Za-z]+) +(?:Kind|Status) += (\d+)`)
	found := 0
	for _, m := range constant.FindAllStringSubmatch(source, -1) {
		if m[2] == "Invalid" {
			continue
		}
		found++
		if !strings.Contains(text, "| "+m[3]+" | `"+m[2]+"` |") {
			t.Errorf("%s%s = %s is not on the page", m[1], m[2], m[3])
		}
	}
	if found < 20 {
		t.Errorf("only %d constants found", found)
	}
	layout := regexp.MustCompile(`(?m)^// {1,2}(?:	)? *(\d+)  (u\d+)  `)
	for _, m := range layout.FindAllStringSubmatch(source, -1) {
		if !strings.Contains(text, "| "+m[1]+" | "+m[2]+" |") {
			t.Errorf("field at %s (%s) is not on the page", m[1], m[2])
		}
	}
}

func TestStorePageIsComplete(t *testing.T) {
	text := read(t, "reference/store.md")
	for _, m := range regexp.MustCompile(`(?m)^//	([a-z]+\S*) {2,}`).FindAllStringSubmatch(read(t, "../store/schema.go"), -1) {
		key := strings.Replace(m[1], "...", "…", 1)
		if !strings.Contains(text, "| `"+key+"` |") {
			t.Errorf("key %s is not on the page", m[1])
		}
	}
	field := regexp.MustCompile("`json:\"([a-z_]+)")
	_, record, _ := strings.Cut(read(t, "../protocol/record.go"), "type Record struct {")
	record, _, _ = strings.Cut(record, "\n}\n")
	fields := field.FindAllStringSubmatch(record, -1)
	if len(fields) < 15 {
		t.Fatalf("only %d fields of the record found", len(fields))
	}
	for _, m := range fields {
		if m[1] != "group" && m[1] != "project" && !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("field %s of the record is not on the page", m[1])
		}
	}
	step := regexp.MustCompile(`Step[A-Z][A-Za-z0-9]* +Step = "([a-z-]+)"`)
	for _, m := range step.FindAllStringSubmatch(read(t, "../protocol/record.go"), -1) {
		if !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("step %s is not on the page", m[1])
		}
	}
}

// TestADRsHaveTheirParts checks that a decision's page says why, what, what follows and what would
// change it.
func TestADRsHaveTheirParts(t *testing.T) {
	files, err := filepath.Glob("adr/0*.md")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d decisions: %v", len(files), err)
	}
	for _, f := range files {
		for _, part := range []string{"**Context.**", "**Decision.**", "**Consequences.**", "**What would change our mind.**"} {
			if !strings.Contains(read(t, f), part) {
				t.Errorf("%s: no %s", f, part)
			}
		}
	}
}

// TestModelsHavePages: each model has a page with all its parts, which names every run of it, and files,
// and tests, that exist.
func TestModelsHavePages(t *testing.T) {
	models, err := filepath.Glob(root + "/model/*.pml")
	if err != nil || len(models) < 15 {
		t.Fatalf("%d models: %v", len(models), err)
	}
	tests := goTests(t)
	file, test := regexp.MustCompile("`[a-z/]+[a-z_0-9]*\\.go`"), regexp.MustCompile("`Test[A-Za-z0-9]+`")
	runs := regexp.MustCompile(`(?m)^([A-Za-z0-9-]+) +\| ([a-z]+)\.pml`).FindAllStringSubmatch(read(t, root+"/model/runs.txt"), -1)
	for _, model := range models {
		name := strings.TrimSuffix(filepath.Base(model), ".pml")
		text := read(t, root+"/model/"+name+".md")
		for _, part := range []string{"**What is modelled.**", "| in the model | in the code |", "**Checked.**", "**Left out.**", "**Broken variants.**", "**States.**"} {
			if !strings.Contains(text, part) {
				t.Errorf("model %s: no %s", name, part)
			}
		}
		for _, r := range runs {
			if r[2] == name && !regexp.MustCompile(`\b`+r[1]+`\b`).MatchString(text) {
				t.Errorf("model %s: the page does not name the run %s", name, r[1])
			}
		}
		for _, f := range file.FindAllString(text, -1) {
			if _, err := os.Stat(filepath.Join(root, strings.Trim(f, "`"))); err != nil {
				t.Errorf("model %s: %v", name, err)
			}
		}
		for _, f := range test.FindAllString(text, -1) {
			if !tests[strings.Trim(f, "`")] {
				t.Errorf("model %s: there is no %s", name, f)
			}
		}
	}
}

// goTests are the names of all tests of the project.
func goTests(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	decl := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if err == nil && strings.HasSuffix(path, "_test.go") {
			for _, m := range decl.FindAllStringSubmatch(read(t, path), -1) {
				names[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
