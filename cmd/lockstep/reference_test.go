package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test -count=1 -run ^TestReference$ -update-reference .

var updateReference = flag.Bool("update-reference", false, "write docs/reference/cli.md anew")

const referencePath = "../../docs/reference/cli.md"

// TestReference compares the page of the command line with the commands themselves.
func TestReference(t *testing.T) {
	want := reference(newRoot(&app{}))
	if *updateReference {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("docs/reference/cli.md is not what the commands say; run: go generate ./cmd/lockstep")
	}
}

// reference writes one section for each command.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command line\n\n<!-- Generated from the commands by `go generate ./cmd/lockstep`. -->\n")
	for _, c := range allCommands(root) {
		if c.Hidden {
			continue
		}
		long := strings.TrimSpace(strings.TrimSuffix(c.Long, exitCodesLine))
		long = strings.TrimSpace(strings.TrimSuffix(long, "Exit codes are listed by \"lockstep --help\":"))
		fmt.Fprintf(&b, "\n%s %s\n\n```\n%s\n```\n", strings.Repeat("#", min(2+strings.Count(c.CommandPath(), " "), 4)), c.CommandPath(), long)
		fmt.Fprintf(&b, "\nUsage: `%s`\n\n```sh\n%s\n```\n", c.UseLine(), unindent(c.Example))
		if flags := flagRows(c.NonInheritedFlags()); flags != "" {
			fmt.Fprintf(&b, "\n| flag | value | default | meaning |\n|---|---|---|---|\n%s", flags)
		}
		if inherited := c.InheritedFlags(); inherited.HasAvailableFlags() {
			var names []string
			inherited.VisitAll(func(f *pflag.Flag) { names = append(names, "`--"+f.Name+"`") })
			fmt.Fprintf(&b, "\nAlso: %s, as for `%s`.\n", strings.Join(names, ", "), c.Parent().CommandPath())
		}
	}
	return b.String()
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

func flagRows(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		def := f.DefValue
		if def == "[]" || def == "" {
			def = "-"
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s | %s |\n", f.Name, f.Value.Type(), def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	return b.String()
}

// TestCommandsAreComplete checks the house rules for every command: long help with the exit
// codes, an example that names the command, a judgement on arguments, and flags with texts.
func TestCommandsAreComplete(t *testing.T) {
	for _, c := range allCommands(newRoot(&app{})) {
		path := c.CommandPath()
		if c.Long == "" || !strings.Contains(c.Long, "5  timed out") && !strings.Contains(c.Long, "5 timed out") {
			t.Errorf("%s: no long help with exit codes", path)
		}
		if !strings.Contains(c.Example, path) && !strings.Contains(c.Example, strings.TrimSuffix(path, " help")) {
			t.Errorf("%s: the example does not show it: %q", path, c.Example)
		}
		if c.Args == nil && c.Name() != "help" {
			t.Errorf("%s: does not say which arguments it takes", path)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: no text", path, f.Name)
			}
		})
	}
}

// TestUsageErrors checks that what is not known is refused with the code for usage, before
// anything is done.
func TestUsageErrors(t *testing.T) {
	for _, line := range []string{
		"nope", "group nope", "volume list extra", "group failover", "group failover a b", "group list --nope",
		"volume create --name x", "pair create --priority-station az1", "dev kill", "help nope",
		"node --id n1", "controller", "volume extend v --size many",
		"dev --dir $DIR --nodes-per-az -1", "dev --dir $DIR --nodes-per-az 65", "dev --dir $DIR --az a/b",
		"dev --dir $DIR --az a --az a", "dev --dir $DIR --listen nowhere", "dev --dir $DIR --listen 127.0.0.1:port",
		"dev --dir $DIR --listen 127.0.0.1:65536",
	} {
		line = strings.ReplaceAll(line, "$DIR", t.TempDir())
		if code, out, e := cli(t, strings.Fields(line)...); code != exitUsage || out != "" {
			t.Errorf("%q: exit code %d, want %d; stdout %q, stderr %q", line, code, exitUsage, out, e)
		}
	}
}

// TestNoCredentials: what a shell without an openrc, or with half of one, is told.
func TestNoCredentials(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"OS_AUTH_URL": "http://127.0.0.1:1/identity/v3", "OS_USERNAME": "admin"},
		{"OS_AUTH_URL": "http://127.0.0.1:1/identity/v3", "OS_PASSWORD": "p"},
	} {
		for _, name := range []string{"OS_CLOUD", "OS_AUTH_URL", "OS_USERNAME", "OS_USER_ID", "OS_PASSWORD", "OS_TOKEN", "OS_APPLICATION_CREDENTIAL_SECRET"} {
			t.Setenv(name, env[name])
		}
		if code, out, e := cli(t, "group", "list"); code != exitUsage || out != "" || !strings.Contains(e, "no credentials") {
			t.Errorf("%v: exit code %d, want %d; stdout %q, stderr %q", env, code, exitUsage, out, e)
		}
	}
}

// TestNotConfirmed: a question that nobody answers is a wrong call, and what it was about was not done.
func TestNotConfirmed(t *testing.T) {
	a := &app{in: strings.NewReader("yes\n"), out: io.Discard, err: io.Discard}
	if code := exitCode(a.confirm(confirmer{}, "it will go")); code != exitUsage {
		t.Errorf("exit code %d, want %d", code, exitUsage)
	}
	if err := a.confirm(confirmer{yes: true}, "it will go"); err != nil {
		t.Error(err)
	}
}
