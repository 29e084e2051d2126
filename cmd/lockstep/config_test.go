package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// cli runs a command line without a terminal.
func cli(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// role tells from a sample's name which daemon it is for.
func role(path string) string {
	name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".yaml"), "-")
	return name
}

// TestSamples checks that every sample configuration is valid.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("../../etc/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, f := range files {
		if code, _, e := cli(t, "config", "show", role(f), "--config", f); code != exitOK {
			t.Errorf("%s: exit code %d: %s", f, code, e)
		}
	}
}

// TestSamplesComplete checks that the two main samples name every key: they are the reference.
func TestSamplesComplete(t *testing.T) {
	for file, help := range map[string]map[string]string{"controller": controllerHelp, "node": nodeHelp} {
		text, err := os.ReadFile("../../etc/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		for key := range help {
			if !strings.Contains(string(text), "\n"+key+":") && !strings.Contains(string(text), "\n# "+key+":") {
				t.Errorf("etc/%s.yaml does not mention %s", file, key)
			}
		}
	}
}

// TestInvalidSamples checks that each invalid sample is refused for each reason it names in its
// "want" lines.
func TestInvalidSamples(t *testing.T) {
	files, err := filepath.Glob("../../etc/invalid/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		code, _, e := cli(t, "config", "show", role(f), "--config", f)
		if code != exitUsage {
			t.Errorf("%s: exit code %d, want %d: %s", f, code, exitUsage, e)
		}
		wants := 0
		for line := range strings.SplitSeq(string(text), "\n") {
			if want, ok := strings.CutPrefix(line, "# want: "); ok {
				wants++
				if !strings.Contains(e, want) {
					t.Errorf("%s: the error does not say %q: %s", f, want, e)
				}
			}
		}
		if wants == 0 {
			t.Errorf("%s names no reason", f)
		}
	}
}

// TestHelpComplete checks that every key has a help text and that no text is for an unknown key.
func TestHelpComplete(t *testing.T) {
	controller, node := defaultControllerConfig(), defaultNodeConfig()
	for name, s := range map[string]*settings{
		"controller": {target: &controller, help: controllerHelp},
		"node":       {target: &node, help: nodeHelp},
	} {
		keys := 0
		s.each(func(key string, _ reflect.Value) {
			keys++
			if s.help[key] == "" {
				t.Errorf("%s: %s has no help text", name, key)
			}
		})
		if keys != len(s.help) {
			t.Errorf("%s: %d keys, %d help texts", name, keys, len(s.help))
		}
	}
}

// TestPrecedence checks the order flag, variable, file, default, and the origins that are shown.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("etcd_dir: /f\nregion: from-file\nlisten: 127.0.0.1:1\nadmin_user: from-file\nadmin_password_file: /p\nazs: [x, y]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LOCKSTEP_REGION", "from-env")
	t.Setenv("LOCKSTEP_LISTEN", "127.0.0.1:2")
	t.Setenv("LOCKSTEP_AZS", "p, q")
	code, out, e := cli(t, "config", "show", "controller", "--config", file, "--listen", "127.0.0.1:3", "--shutdown-timeout", "3s", "--json")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, e)
	}
	flat := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{
		`"key": "listen", "value": "127.0.0.1:3", "origin": "flag --listen"`,
		`"key": "region", "value": "from-env", "origin": "environment LOCKSTEP_REGION"`,
		`"key": "azs", "value": [ "p", "q" ], "origin": "environment LOCKSTEP_AZS"`,
		`"key": "admin_user", "value": "from-file", "origin": "file ` + file + `"`,
		`"key": "shutdown_timeout", "value": "3s", "origin": "flag --shutdown-timeout"`,
		`"key": "log_level", "value": "info", "origin": "default"`,
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("missing %s in %s", want, flat)
		}
	}
	t.Setenv("LOCKSTEP_SHUTDOWN_TIMEOUT", "soon")
	if code, _, e := cli(t, "config", "show", "controller", "--config", file); code != exitUsage || !strings.Contains(e, "LOCKSTEP_SHUTDOWN_TIMEOUT") {
		t.Errorf("a wrong variable: exit code %d: %s", code, e)
	}
}
