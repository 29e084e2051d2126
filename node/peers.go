package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/store"
)

const peersFile = "cluster.json"

// peers knows the cluster and where its nodes listen. It is kept in the pool too, so that a node
// that starts while the store is away can still reach its secondaries.
type peers struct {
	fs   vfs.FS
	path string
	log  *slog.Logger

	mu      sync.Mutex                 // guards what follows
	Cluster string                     `json:"cluster"`
	Nodes   map[lockstep.NodeID]string `json:"nodes"`
	Host    string                     `json:"host,omitempty"` // machine on which the directory was used last
	// Registered is the last start of this directory that the store was told. The store knowing a
	// later one means that this is an older copy, however often it was started since.
	Registered uint64 `json:"registered"`
}

// registering notes, durably, that the store is about to be told that start.
func (p *peers) registering(start uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Registered == start {
		return nil
	}
	p.Registered = start
	return p.write()
}

func (p *peers) registered() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Registered
}

// machineID names this machine; "" if it has no name, as a container may.
func machineID(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	raw, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read machine id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// movedTo reports whether the directory was last used on another machine: it may be a copy of one
// that went on being written to, whatever its start counter says.
func (p *peers) movedTo(given string) (bool, error) {
	id, err := machineID(given)
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	moved := p.Host != "" && p.Host != id
	if moved {
		p.log.Warn("the pool directory was last used on another machine; it gets a new instance id", "machine", id, "before", p.Host)
	}
	return moved, nil
}

// settled notes the machine, after what follows from a move is durable.
func (p *peers) settled(given string) error {
	id, err := machineID(given)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Host != id {
		p.Host = id
		p.save()
	}
	return nil
}

func loadPeers(disk vfs.FS, path string, log *slog.Logger) (*peers, error) {
	p := &peers{fs: disk, path: path, log: log, Nodes: map[lockstep.NodeID]string{}}
	raw, err := readFile(disk, path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read known nodes: %w", err)
	}
	if err := json.Unmarshal(raw, p); err != nil {
		log.Warn("the list of known nodes cannot be read; it is made anew", "path", path, "err", err)
	}
	if p.Nodes == nil {
		p.Nodes = map[lockstep.NodeID]string{}
	}
	return p, nil
}

func readFile(disk vfs.FS, path string) ([]byte, error) {
	f, err := disk.OpenFile("peers", path, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	raw := make([]byte, size)
	if n, err := f.ReadAt(raw, 0); n < len(raw) {
		return nil, err
	}
	return raw, nil
}

// save is write for what is only a cache: losing it costs a start with the store away.
func (p *peers) save() {
	if err := p.write(); err != nil {
		p.log.Warn("save known nodes", "err", err)
	}
}

// write replaces the file, durably. It is called with mu held.
func (p *peers) write() error {
	raw, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("encode known nodes: %w", err)
	}
	tmp := p.path + ".tmp"
	err = func() error {
		f, err := p.fs.OpenFile("peers", tmp, vfs.Create|vfs.Truncate)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(raw, 0)
		if err == nil {
			err = f.Fdatasync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if err := p.fs.Rename("peers", tmp, p.path); err != nil {
			return err
		}
		return p.fs.SyncDir("peers", filepath.Dir(p.path))
	}()
	if err != nil {
		return fmt.Errorf("save known nodes: %w", err)
	}
	return nil
}

func (p *peers) resolve(id lockstep.NodeID) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	addr := p.Nodes[id]
	return addr, addr != ""
}

// waitCluster reads the cluster's id from the store, waiting for the first controller to write it;
// a pool that has belonged to a cluster knows it already.
func (p *peers) waitCluster(ctx context.Context, st store.Store) (string, error) {
	said := false
	for {
		c, _, err := store.GetT[store.Cluster](ctx, st, store.KeyCluster)
		p.mu.Lock()
		known := p.Cluster
		switch {
		case err == nil && known != "" && known != c.ID:
			p.mu.Unlock()
			return "", fmt.Errorf("this pool belongs to cluster %s, the store to cluster %s", known, c.ID)
		case err == nil:
			p.Cluster = c.ID
			p.save()
			p.mu.Unlock()
			return c.ID, nil
		case known != "":
			p.mu.Unlock()
			p.log.Warn("the store does not answer; starting with what is known", "cluster", known, "err", err)
			return known, nil
		}
		p.mu.Unlock()
		if !said {
			p.log.Info("waits for the store and its first controller", "err", err)
			said = true
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// follow keeps the addresses current.
func (p *peers) follow(ctx context.Context, st store.Store) error {
	return store.Follow(ctx, st, store.PrefixNodes, func(batch []store.Change[store.Node]) {
		p.mu.Lock()
		defer p.mu.Unlock()
		changed := false
		for _, c := range batch {
			id := lockstep.NodeID(strings.TrimPrefix(c.Key, store.PrefixNodes))
			if c.Kind == store.ChangePut && p.Nodes[id] != c.Value.Replicate {
				p.Nodes[id] = c.Value.Replicate
				changed = true
			}
		}
		if changed {
			p.save()
		}
	})
}
