package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestTLSPage runs the commands of the page in the order in which it gives them.
func TestTLSPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operating/tls.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	ran := 0
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			args := words(strings.TrimSpace(line))
			if len(args) == 0 || args[0] != "lockstep" {
				t.Fatalf("not a command of ours: %q", line)
			}
			if code, out, e := cli(t, args[1:]...); code != exitOK || out == "" {
				t.Errorf("%s: exit code %d: %s%s", line, code, out, e)
			}
			ran++
		}
	}
	if ran < 8 {
		t.Errorf("only %d commands found", ran)
	}
	for _, path := range []string{"ca/ca.crt", "ca/node/az1-node-1.crt", "ca/node/az1-node-1.key", "ca/controller/controller-1.key", "ca/etcd/etcd-az1.crt", "ca/api/api.example.org.crt"} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the page promises %s: %v", path, err)
		}
	}
}

// words splits a command line with double quotes.
func words(line string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(line, -1) {
		all = append(all, m[1]+m[2])
	}
	return all
}
