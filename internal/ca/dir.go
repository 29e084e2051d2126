package ca

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// Files of a directory: the CA, and <kind>/<name>.crt and .key of what it has issued.
const (
	CertFile = "ca.crt"
	KeyFile  = "ca.key"
)

// Dir keeps an Authority in a directory that is its owner's alone.
type Dir struct {
	Path string
	*Authority
}

// Issued is a certificate that lies in the directory.
type Issued struct {
	Kind     Kind
	Name     string
	Cert     string // path of the file
	Key      string
	Names    []string // what it proves its holder to be
	NotAfter time.Time
}

// Create makes a directory with a new CA. One that holds a CA is left as it is (lockstep.ErrConflict): another
// key would make all that it has issued worthless.
func Create(path, name string, now time.Time, life time.Duration) (*Dir, error) {
	a, err := New(name, now, life)
	if err != nil {
		return nil, err
	}
	cert, key, err := a.PEM()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	for _, file := range []string{KeyFile, CertFile} {
		if _, err := os.Lstat(filepath.Join(path, file)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s holds a CA, or a part of one (%s): %w; use it, or another directory", path, file, lockstep.ErrConflict)
		}
	}
	if err := writeFile(filepath.Join(path, KeyFile), key, 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(path, CertFile), cert, 0o644); err != nil {
		return nil, err
	}
	return &Dir{path, a}, nil
}

// Open reads the CA of a directory. It refuses a key that others may read.
func Open(path string) (*Dir, error) {
	keyPath := filepath.Join(path, KeyFile)
	info, err := os.Stat(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no CA (%s: %w); lockstep ca init makes one", path, KeyFile, lockstep.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o: others than its owner can use it, and could pose as any node; take that from them (chmod 600) and think of a new CA", keyPath, mode)
	}
	cert, err := os.ReadFile(filepath.Join(path, CertFile))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, err
	}
	a, err := Parse(cert, key)
	if err != nil {
		return nil, fmt.Errorf("CA of %s: %w", path, err)
	}
	return &Dir{path, a}, nil
}

// Issue makes a certificate and its key and puts them into the directory. What is there under that name stays
// (lockstep.ErrConflict), unless replace is set.
func (d *Dir) Issue(r Request, now time.Time, replace bool) (Issued, error) {
	cert, key, err := d.Authority.Issue(r, now)
	if err != nil {
		return Issued{}, err
	}
	made, err := ParseCert(cert)
	if err != nil {
		return Issued{}, err
	}
	base := filepath.Join(d.Path, string(r.Kind), r.Name)
	out := Issued{Kind: r.Kind, Name: r.Name, Cert: base + ".crt", Key: base + ".key", Names: namesOf(made), NotAfter: made.NotAfter}
	for _, path := range []string{out.Cert, out.Key} {
		if _, err := os.Lstat(path); !replace && !errors.Is(err, fs.ErrNotExist) {
			return Issued{}, fmt.Errorf("%s is there already: %w; with --replace a new one takes its place", path, lockstep.ErrConflict)
		}
	}
	if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
		return Issued{}, err
	}
	if err := writeFile(out.Key, key, 0o600); err != nil {
		return Issued{}, err
	}
	return out, writeFile(out.Cert, cert, 0o644)
}

// List gives what was issued, by kind and name. A file that holds no certificate is an error: a list that
// leaves one out would hide that it ends.
func (d *Dir) List() ([]Issued, error) {
	var all []Issued
	for _, kind := range Kinds {
		entries, err := os.ReadDir(filepath.Join(d.Path, string(kind)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, found := strings.CutSuffix(e.Name(), ".crt")
			if !found {
				continue
			}
			base := filepath.Join(d.Path, string(kind), name)
			one := Issued{Kind: kind, Name: name, Cert: base + ".crt", Key: base + ".key"}
			pair, err := tls.LoadX509KeyPair(one.Cert, one.Key)
			if err != nil {
				return nil, fmt.Errorf("%s: %w; issue it again with --replace", one.Cert, err)
			}
			if err := pair.Leaf.CheckSignatureFrom(d.Cert); err != nil || !bytes.Equal(pair.Leaf.RawIssuer, d.Cert.RawSubject) {
				return nil, fmt.Errorf("%s was not issued by this CA; issue it again with --replace", one.Cert)
			}
			one.NotAfter, one.Names = pair.Leaf.NotAfter, namesOf(pair.Leaf)
			all = append(all, one)
		}
	}
	slices.SortStableFunc(all, func(a, b Issued) int {
		return strings.Compare(string(a.Kind)+"/"+a.Name, string(b.Kind)+"/"+b.Name)
	})
	return all, nil
}

// writeFile puts a file in place as a whole, durably.
func writeFile(path string, text []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // is there only after an error
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
