package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/api/audit"
)

// TestHangupReopensAuditLog: after a rename and SIGHUP lines go to a new file; a second one that finds no place leaves
// the log where it is.
func TestHangupReopensAuditLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l, err := audit.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var said syncedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	hup, ended := hangups(l), make(chan error, 1)
	go func() { ended <- reopenAudit(ctx, hup, l, slog.New(slog.NewTextHandler(&said, nil))) }()
	hang := func(until string) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); !strings.Contains(said.String(), until); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the log says %q", said.String())
			}
		}
	}
	rename := func(to string) {
		t.Helper()
		if err := os.Rename(path, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(id string) {
		t.Helper()
		if err := l.Write(audit.Record{RequestID: id}); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	rename("first")
	hang("opened anew")
	write("two")
	rename("second")
	if err := os.Mkdir(path, 0o700); err != nil { // in the file's place
		t.Fatal(err)
	}
	hang("goes on in its old file")
	write("three")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for name, want := range map[string][]string{"first": {"one"}, "second": {"two", "three"}} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.Count(string(data), "\n") != len(want) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		for _, id := range want {
			if !strings.Contains(string(data), `"`+id+`"`) {
				t.Errorf("%s lacks %s: %q", name, id, data)
			}
		}
	}
}

// TestNoAuditLog: without one SIGHUP stays what it is.
func TestNoAuditLog(t *testing.T) {
	if hangups(nil) != nil {
		t.Error("SIGHUP is caught")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := reopenAudit(ctx, nil, nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}

// syncedBuffer is a buffer that a log writes to while a test reads it.
type syncedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncedBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncedBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
