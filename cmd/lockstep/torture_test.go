package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/torture"
)

// TestTorture breaks a deployment for half a minute.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole deployment; run without -short")
	}
	dir := filepath.Join(t.TempDir(), "d")
	file := filepath.Join(t.TempDir(), "report.json")
	var out, errOut bytes.Buffer
	code := run([]string{"torture", "--time", "25s", "--dir", dir, "--report", file}, strings.NewReader(""), &out, &errOut)
	if code != exitOK {
		t.Fatalf("exit code %d: %s\n%s", code, &errOut, &out)
	}
	var p torture.Report
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if p.Verdict != torture.NothingLost || p.Rounds == 0 || len(p.Faults) == 0 || p.ChainWrites == 0 || p.Registers.Reads == 0 ||
		p.Registers.Writes == 0 || p.RequestsJudged == 0 || p.ImagesJudged < int64(p.Rounds) || p.BytesCompared == 0 {
		t.Errorf("the report is not of a run that looked at something:\n%s", raw)
	}
	if !strings.Contains(out.String(), "verdict: nothing lost") {
		t.Errorf("no verdict in\n%s", &out)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if left := running(t, dir); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

func TestTortureRefusesWhatItMustNotTouch(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--dir", dir}, {"--time", "0s"}, {"--groups", "0"}, {"--disks", "9"}, {"--nodes-per-az", "5"}, {"--report", filepath.Join(dir, "no", "such")},
	} {
		if code, _, e := cli(t, append([]string{"torture"}, args...)...); code != exitUsage {
			t.Errorf("%v: exit code %d: %s", args, code, e)
		}
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
}
