package disk

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/lockstep-dr/lockstep"
)

const (
	groupMagic   = "LSGS"
	groupVersion = 1
	groupHead    = 16
	maxGroupBlob = 16 << 20
)

// encodeGroup returns the contents of a group's state file; see the package comment.
func encodeGroup(id lockstep.GroupID, blob []byte) []byte {
	out := make([]byte, groupHead, groupHead+len(blob))
	copy(out, groupMagic)
	le.PutUint16(out[4:], groupVersion)
	le.PutUint32(out[8:], uint32(len(blob)))
	out = append(out, blob...)
	le.PutUint32(out[12:], groupSum(id, out))
	return out
}

func groupSum(id lockstep.GroupID, data []byte) uint32 {
	sum := crc32.Checksum([]byte(id), castagnoli)
	sum = crc32.Update(sum, castagnoli, data[:12])
	return crc32.Update(sum, castagnoli, data[groupHead:])
}

// decodeGroup returns the blob, which shares memory with data.
func decodeGroup(id lockstep.GroupID, data []byte) ([]byte, error) {
	if len(data) < groupHead || string(data[:4]) != groupMagic || le.Uint32(data[12:]) != groupSum(id, data) {
		return nil, fmt.Errorf("checksum: %w", lockstep.ErrCorrupt)
	}
	if v := le.Uint16(data[4:]); v != groupVersion {
		return nil, fmt.Errorf("format %d is not known", v)
	}
	if int64(le.Uint32(data[8:])) != int64(len(data)-groupHead) {
		return nil, fmt.Errorf("length: %w", lockstep.ErrCorrupt)
	}
	return data[groupHead:], nil
}

// lockGroup serializes the changes of one group's file; different groups do not wait for each
// other's syncs.
func (p *Pool) lockGroup(id lockstep.GroupID) *sync.Mutex {
	p.groupMu.Lock()
	m := p.groups[id]
	if m == nil {
		m = new(sync.Mutex)
		p.groups[id] = m
	}
	p.groupMu.Unlock()
	m.Lock()
	return m
}

// SaveGroup stores the blob of a group, at most 16 MiB, in place of the one before. It is durable
// when SaveGroup returns nil; after a crash, or an error, the old or the new one is there, whole.
func (p *Pool) SaveGroup(id lockstep.GroupID, blob []byte) error {
	if err := checkID("group", string(id)); err != nil {
		return err
	}
	if len(blob) > maxGroupBlob {
		return fmt.Errorf("save group %s: %d bytes, more than %d", id, len(blob), maxGroupBlob)
	}
	defer p.lockGroup(id).Unlock()
	if err := p.replace("group", p.groupPath(id), encodeGroup(id, blob)); err != nil {
		return fmt.Errorf("save group %s: %w", id, err)
	}
	return nil
}

// LoadGroup returns the blob that was saved last. lockstep.ErrNotFound if there is none,
// lockstep.ErrCorrupt if it cannot be trusted.
func (p *Pool) LoadGroup(id lockstep.GroupID) ([]byte, error) {
	if err := checkID("group", string(id)); err != nil {
		return nil, err
	}
	data, err := p.readAll("group", p.groupPath(id), maxGroupBlob+groupHead)
	if errors.Is(err, fs.ErrNotExist) {
		err = lockstep.ErrNotFound
	}
	if err == nil {
		data, err = decodeGroup(id, data)
	}
	if err != nil {
		return nil, fmt.Errorf("load group %s: %w", id, err)
	}
	return data, nil
}

// DeleteGroup removes the blob of a group, durably; it is no error if there is none.
func (p *Pool) DeleteGroup(id lockstep.GroupID) error {
	if err := checkID("group", string(id)); err != nil {
		return err
	}
	defer p.lockGroup(id).Unlock()
	err := ignoreMissing(p.fs.Remove("group", p.groupPath(id)))
	if err == nil {
		err = p.fs.SyncDir("group", filepath.Join(p.dir, groupsDir))
	}
	if err != nil {
		return fmt.Errorf("delete group %s: %w", id, err)
	}
	return nil
}

// Groups lists the groups that have a blob, sorted.
func (p *Pool) Groups() ([]lockstep.GroupID, error) {
	names, err := p.fs.ReadDir("pool", filepath.Join(p.dir, groupsDir))
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	var ids []lockstep.GroupID
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, extState); ok && checkID("group", id) == nil {
			ids = append(ids, lockstep.GroupID(id))
		}
	}
	slices.Sort(ids)
	return ids, nil
}
