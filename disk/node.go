package disk

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"

	"github.com/lockstep-dr/lockstep"
)

const nodeFormat = 1

// nodeState is node.json.
type nodeState struct {
	Format   int    `json:"format"`
	Instance string `json:"instance_id"`
	Starts   uint64 `json:"start_counter"`
	Check    string `json:"crc32c"` // of the three fields above, as sum writes them
}

func (n nodeState) sum() string {
	text := fmt.Sprintf("%d %s %d", n.Format, n.Instance, n.Starts)
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), castagnoli))
}

func decodeNode(data []byte) (nodeState, error) {
	var n nodeState
	if err := json.Unmarshal(data, &n); err != nil {
		return nodeState{}, fmt.Errorf("%w: %w", lockstep.ErrCorrupt, err)
	}
	if n.Check != n.sum() {
		return nodeState{}, fmt.Errorf("checksum: %w", lockstep.ErrCorrupt)
	}
	if n.Format != nodeFormat {
		return nodeState{}, fmt.Errorf("format %d is not known", n.Format)
	}
	if n.Instance == "" {
		return nodeState{}, fmt.Errorf("no instance id: %w", lockstep.ErrCorrupt)
	}
	return n, nil
}

// countStart reads node.json, or invents it for a new pool, and writes the next start counter.
func (p *Pool) countStart() error {
	path := filepath.Join(p.dir, nodeFile)
	var n nodeState
	data, err := p.readAll("node", path, 64<<10)
	switch {
	case err == nil:
		if n, err = decodeNode(data); err != nil {
			return fmt.Errorf("%s: %w", nodeFile, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		n = nodeState{Format: nodeFormat, Instance: newUUID()}
	default:
		return err
	}
	n.Starts++
	n.Check = n.sum()
	if data, err = json.MarshalIndent(n, "", "  "); err != nil {
		return err
	}
	if err := p.replace("node", path, append(data, '\n')); err != nil {
		return err
	}
	p.node = n
	return nil
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails; it ends the program if there is no randomness
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// RenewInstance gives the directory a new identity and at least that start counter, durably: it
// turned out to be an older copy of itself, and counts as a stranger from now on.
func (p *Pool) RenewInstance(start uint64) error {
	if err := p.replaceNode(newUUID(), start); err != nil {
		return fmt.Errorf("renew the instance id: %w", err)
	}
	return nil
}

// CountOn gives the directory at least that start counter, durably, and leaves it what it is: another
// directory has counted further for the same node.
func (p *Pool) CountOn(start uint64) error {
	if err := p.replaceNode(p.node.Instance, start); err != nil {
		return fmt.Errorf("raise the start counter: %w", err)
	}
	return nil
}

func (p *Pool) replaceNode(instance string, start uint64) error {
	n := nodeState{Format: nodeFormat, Instance: instance, Starts: max(start, p.node.Starts)}
	n.Check = n.sum()
	data, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	if err := p.replace("node", filepath.Join(p.dir, nodeFile), append(data, '\n')); err != nil {
		return err
	}
	p.node = n
	return nil
}
