package ca

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// TestDir: what is made is there again, keys are their owner's, and nothing is overwritten unasked.
func TestDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	now := time.Now()
	if _, err := Open(dir); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
	d, err := Create(dir, "test", now, year)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, "test", now, year); !errors.Is(err, lockstep.ErrConflict) {
		t.Errorf("made again: %v", err)
	}
	again, err := Open(dir)
	if err != nil || !again.Cert.Equal(d.Cert) {
		t.Fatalf("opened: %v", err)
	}
	node := Request{Kind: KindNode, Name: "n1", Life: time.Hour}
	first, err := again.Issue(node, now, false)
	if err != nil {
		t.Fatal(err)
	}
	api := Request{Kind: KindAPI, Name: "api", Hosts: []string{"10.0.0.1", "api.example.org"}, Life: time.Hour}
	if _, err := again.Issue(api, now, false); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(first.Cert)
	if _, err := again.Issue(node, now, false); !errors.Is(err, lockstep.ErrConflict) {
		t.Errorf("issued again: %v", err)
	}
	if after, _ := os.ReadFile(first.Cert); string(after) != string(before) {
		t.Error("a refused call has changed the file")
	}
	node.Life = 2 * time.Hour
	if _, err := again.Issue(node, now, true); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		dir: 0o700, filepath.Join(dir, KeyFile): 0o600, filepath.Join(dir, CertFile): 0o644,
		filepath.Join(dir, "node"): 0o700, first.Key: 0o600, first.Cert: 0o644,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	list, err := again.List()
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if l := list[1]; l.Name != "n1" || strings.Join(l.Names, " ") != "spiffe://lockstep/node/n1" || l.NotAfter.Sub(now).Round(time.Minute) != 2*time.Hour {
		t.Errorf("%+v", l)
	}
	if l := list[0]; l.Kind != KindAPI || strings.Join(l.Names, " ") != "api.example.org 10.0.0.1" {
		t.Errorf("%+v", l)
	}
	stray, err := filepath.Glob(filepath.Join(dir, "*", ".new-*"))
	if err != nil || len(stray) > 0 {
		t.Errorf("left over: %v", stray)
	}
}

// TestDirSuspects: a key that others can read, and certificates that are not the CA's, are not passed over.
func TestDirSuspects(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	d, err := Create(dir, "test", time.Now(), year)
	if err != nil {
		t.Fatal(err)
	}
	one, err := d.Issue(Request{Kind: KindNode, Name: "n1", Life: time.Hour}, time.Now(), false)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority(t).Issue(Request{Kind: KindNode, Name: "n1", Life: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(one.Cert, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.List(); err == nil || !strings.Contains(err.Error(), "does not match") {
		t.Errorf("the key of another certificate: %v", err)
	}
	if err := os.WriteFile(one.Key, key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.List(); err == nil || !strings.Contains(err.Error(), "not issued by this CA") {
		t.Errorf("another CA's: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, KeyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("a key for all to read: %v", err)
	}
}
