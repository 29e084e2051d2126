package disk

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// maxFoundBytes bounds what a pool keeps of differences; what exceeds it is not kept.
const maxFoundBytes = 64 << 20

// found is the directory with what both sides had where a verification found them different. Nothing
// reads it but people: no rule rests on it.
type found struct {
	mu    sync.Mutex // guards bytes; held over the writing of files
	bytes int64      // in the directory; -1: not counted yet
}

// KeepFound keeps, durably, what both sides of a volume had from off on, before one replaces the
// other, and gives the name of the two files in the pool, without .primary and .secondary. It gives an
// error that matches lockstep.ErrNoSpace if the directory is full: nothing is kept then.
func (p *Pool) KeepFound(id lockstep.VolumeID, off int64, at time.Time, primary, secondary []byte) (name string, err error) {
	if err := checkID("volume", string(id)); err != nil {
		return "", err
	}
	p.found.mu.Lock()
	defer p.found.mu.Unlock()
	if err := p.countFound(); err != nil {
		return "", fmt.Errorf("keep a difference: %w", err)
	}
	need := int64(len(primary) + len(secondary))
	if p.found.bytes+need > maxFoundBytes {
		return "", fmt.Errorf("keep a difference: %s has %d bytes, at most %d are kept: %w", foundDir, p.found.bytes, maxFoundBytes, lockstep.ErrNoSpace)
	}
	p.found.bytes += need
	name = filepath.Join(foundDir, fmt.Sprintf("%s+%d+%s", id, off, at.UTC().Format("20060102T150405.000000Z")))
	err = errors.Join(
		p.replace("found", filepath.Join(p.dir, name+extPrimary), primary),
		p.replace("found", filepath.Join(p.dir, name+extSecondary), secondary))
	return name, err
}

// countFound makes the directory and counts what is in it, once; it removes what an interrupted write
// left. Called with found.mu held.
func (p *Pool) countFound() error {
	if p.found.bytes >= 0 {
		return nil
	}
	dir := filepath.Join(p.dir, foundDir)
	if err := p.fs.MkdirAll("found", dir); err != nil {
		return err
	}
	if err := p.fs.SyncDir("found", p.dir); err != nil {
		return err
	}
	names, err := p.fs.ReadDir("found", dir)
	if err != nil {
		return err
	}
	total := int64(0)
	for _, name := range names {
		if strings.HasSuffix(name, extTmp) {
			if err := p.fs.Remove("found", filepath.Join(dir, name)); err != nil {
				return err
			}
			continue
		}
		f, err := p.fs.OpenFile("found", filepath.Join(dir, name), 0)
		if err != nil {
			return err
		}
		size, err := f.Size()
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		total += size
	}
	p.found.bytes = total
	return nil
}

// removeFound removes what is kept of a volume: it was its contents.
func (p *Pool) removeFound(id lockstep.VolumeID) error {
	p.found.mu.Lock()
	defer p.found.mu.Unlock()
	dir := filepath.Join(p.dir, foundDir)
	names, err := p.fs.ReadDir("found", dir)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, name := range names {
		if foundOf(name) == id {
			if err := p.fs.Remove("found", filepath.Join(dir, name)); ignoreMissing(err) != nil {
				return err
			}
		}
	}
	p.found.bytes = -1
	return p.fs.SyncDir("found", dir)
}

// foundOf is the volume in the name of a kept file; an id may hold a plus sign.
func foundOf(name string) lockstep.VolumeID {
	for range 2 {
		i := strings.LastIndexByte(name, '+')
		if i < 0 {
			return ""
		}
		name = name[:i]
	}
	return lockstep.VolumeID(name)
}
