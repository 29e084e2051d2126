package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func open(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// TestLines: lines are whole whoever writes them at once, are added to those that are there, and are its owner's alone.
func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 2 {
		l := open(t, path)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := l.Write(Record{RequestID: fmt.Sprint(i), On: map[string]string{"id": "a\nb\"\x00é"}}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Write(Record{}); err == nil {
			t.Error("a closed log took a line")
		}
	}
	got := map[string]int{}
	for _, text := range lines(t, path) {
		var r Record
		if err := json.Unmarshal([]byte(text), &r); err != nil || r.On["id"] != "a\nb\"\x00é" {
			t.Fatalf("%q: %v", text, err)
		}
		got[r.RequestID]++
	}
	if len(got) != 20 || got["7"] != 2 {
		t.Errorf("%v", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestReopen: after a rename lines go to a new file, and none is lost; where that cannot be made, to the old one.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "audit.jsonl")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	write := func(id string) {
		t.Helper()
		if err := l.Write(Record{RequestID: id}); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	rename("a/audit.jsonl", "a/old")
	write("2")
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	write("3")
	rename("a", "b")
	if err := l.Reopen(); err == nil {
		t.Error("a file in a directory that is gone was opened")
	}
	write("4")
	if a, b := len(lines(t, filepath.Join(dir, "b/old"))), lines(t, filepath.Join(dir, "b/audit.jsonl")); a != 2 || len(b) != 2 || !strings.Contains(b[1], `"4"`) {
		t.Errorf("%d lines, and %v", a, b)
	}
}

// halfWriter fails in the middle of a line, as on a full disk, for some times.
type halfWriter struct {
	strings.Builder
	fails int
}

func (h *halfWriter) Write(p []byte) (int, error) {
	if h.fails > 0 {
		h.fails--
		n, _ := h.Builder.Write(p[:3])
		return n, errors.New("no space")
	}
	return h.Builder.Write(p)
}

func (h *halfWriter) Close() error { return nil }

// TestHalfALine: the line after one that was cut off is whole.
func TestHalfALine(t *testing.T) {
	w := &halfWriter{fails: 1}
	l := &Log{out: w}
	if err := l.Write(Record{RequestID: "lost"}); err == nil {
		t.Fatal("no error")
	}
	for _, id := range []string{"next", "last"} {
		if err := l.Write(Record{RequestID: id}); err != nil {
			t.Fatal(err)
		}
	}
	got := strings.Split(w.String(), "\n")
	if len(got) != 4 || !json.Valid([]byte(got[1])) || !strings.Contains(got[1], "next") || !json.Valid([]byte(got[2])) || got[3] != "" {
		t.Errorf("%q", w.String())
	}
}

// TestNoLog: without a path nothing is kept, and a path that cannot be opened is an error.
func TestNoLog(t *testing.T) {
	l, err := Open("")
	if l != nil || err != nil || l.Write(Record{}) != nil || l.Reopen() != nil || l.Close() != nil {
		t.Errorf("%v, %v", l, err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
	out := open(t, Stdout)
	if err := out.Reopen(); err != nil {
		t.Error(err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stdout.Stat(); err != nil {
		t.Errorf("standard output was closed: %v", err)
	}
}
